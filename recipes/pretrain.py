"""Supervised pre-training of a backbone for a domain that has none, on any data set of images with classes.

    accelerate launch recipes/pretrain.py --dataset my_images --model vit_tiny_patch16_224 \\
        --model_args '{"img_size": 64, "patch_size": 8, "depth": 6}' --output_dir runs/backbone

The result, `<output_dir>/backbone`, is a folder in timm's format. `--teacher` and `--student` of train.py accept it,
and `timm.create_model("local-dir:<folder>", pretrained=True)` loads it. A Vision Transformer that train.py would
refuse is refused here before training. `<output_dir>/network` is the same network with its classifier; another network
can learn from its soft labels on the same data (`--distill_from`), whatever its timm architecture.

Augmentation: images are resized as at test time; one bicubic resampling then rotates, scales, stretches, shears,
shifts, mirrors and smoothly distorts them. Afterwards strokes may be thickened, parts erased, and images mixed.
"""

import io
import json
import math
import pickle
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from probe import probe
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models import get_model_input_config, save_for_hf
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from tqdm import tqdm

from cdl_hf.cli import argument, cli_error, parse, to_dict
from cdl_hf.data.errors import DatasetError
from cdl_hf.data.labels import read_labels
from cdl_hf.data.loading import load_image_dataset
from cdl_hf.data.splits import Splits
from cdl_hf.data.task_images import Batches, TaskImages
from cdl_hf.data.transforms import eval_transform, image_processor_for
from cdl_hf.data.views import image_digests, ordered_digest
from cdl_hf.models.backbones import backbone_digest
from cdl_hf.models.prefix_attention import check_backbone, check_images
from cdl_hf.training.arguments import DatasetArguments
from cdl_hf.training.build import source_options
from cdl_hf.utils import DamagedFile, atomic_write, seal_file, verify, write_json


@dataclass
class DataArguments(DatasetArguments):
    """The data set."""

    dataset: str = argument("Name of a known data set, a folder of images, a table, a saved data set, or a Hub name")
    test_fraction: float = argument(
        "Share of each class that is held out when there is no test split", 0.1, min=0, max=1
    )
    probe: str | None = argument("Data set on which to probe the finished backbone's features (see probe.py)", None)


@dataclass
class ModelArguments:
    """The network."""

    model: str = argument("Architecture by its timm name, such as vit_tiny_patch16_224")
    model_args: str = argument("JSON object of arguments for timm.create_model", "{}")
    image_size: int | None = argument("Side of the square images in pixels", None, unset="the network's", min=8)
    mean: float | None = argument("Mean that is subtracted from pixels in [0, 1]", None, unset="the network's")
    std: float | None = argument("Standard deviation that divides the pixels", None, unset="the network's")
    distill_from: str | None = argument("Network folder of an earlier run, whose soft labels replace the labels", None)
    temperature: float = argument("Temperature of the soft labels", 2.0, min=0.1)


@dataclass
class PretrainingConfig:
    """The training."""

    output_dir: str = argument("New folder, or the folder of a run to resume (--resume_from_checkpoint)")
    resume_from_checkpoint: bool = argument(
        "Continue after the last finished epoch in output_dir", False, aliases=("resume",)
    )
    num_train_epochs: int = argument("Number of epochs", 50, min=1, aliases=("num_epochs",))
    batch_size: int = argument("Images per step and process; an even number, for mixing", 128, min=2)
    learning_rate: float = argument("Peak learning rate of AdamW, with cosine decay to zero", 1e-3, min=0)
    weight_decay: float = argument("Weight decay of matrices; biases and norms have none", 0.05, min=0)
    warmup_epochs: float = argument("Epochs of linear warmup before the cosine", 2.0, min=0)
    ema_decay: float = argument("Decay of the averaged weights, which are saved", 0.998, max=1)
    label_smoothing: float = argument("Label smoothing: share spread over all classes", 0.1, min=0, max=1)
    mixing: float = argument("Share of batches with mixup or cutmix", 0.2, min=0, max=1)
    augmentation: float = argument("Strength of the augmentation; 0 turns it off", 1.0, min=0)
    dataloader_num_workers: int = argument(
        "Number of processes that read and resize images", 0, min=0, aliases=("num_workers",)
    )
    seed: int = argument("Random seed", 0, min=0)


def augment(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Random affine map, distortion, mirroring, thickening and erasing of images (B, 3, S, S) in [0, 1]."""
    n, size, device = len(images), images.shape[-1], images.device

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, device=device) * (high - low) + low

    angle, shear = strength * uniform(-0.26, 0.26), strength * uniform(-0.2, 0.2)  # 15 degrees
    width = torch.exp(strength * uniform(-0.1, 0.3))  # above 1 shrinks
    height = width * torch.exp(strength * uniform(-0.2, 0.2))
    mirror = 1 - 2 * (torch.rand(n, device=device) < 0.5).float() * (strength > 0)
    cos, sin, shift = angle.cos(), angle.sin(), strength * uniform(-0.12, 0.12, 2)
    rows = [width * (cos + shear * sin) * mirror, width * (shear * cos - sin), shift[:, 0]]
    rows += [height * sin * mirror, height * cos, shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), images.shape, align_corners=False)
    bumps = strength * 0.04 * torch.randn(n, 2, 5, 5, device=device)
    bumps = F.interpolate(bumps, size=(size, size), mode="bicubic", align_corners=True)
    images = F.grid_sample(images, grid + bumps.permute(0, 2, 3, 1), mode="bicubic", align_corners=False).clamp(0, 1)

    thicker = uniform(0, 1, 1, 1, 1) * (torch.rand(n, 1, 1, 1, device=device) < 0.25 * strength)
    images = images + thicker * (F.max_pool2d(images, 3, 1, 1) - images)

    position = torch.arange(size, device=device) / size
    far = [(position - uniform(0, 1, 1)).abs() > uniform(0.07, 0.22, 1) for _ in range(2)]
    kept = torch.rand(n, device=device) > 0.25 * strength
    return images * (far[0][:, None, :, None] | far[1][:, None, None, :] | kept[:, None, None, None])


def load_network(folder: str, names: list[str]) -> torch.nn.Module:
    """A network saved by an earlier run, whose soft labels are used; its classes must be the same, in this order."""
    if not (Path(folder) / "config.json").is_file():
        cli_error(f"distill_from: {folder} is not a saved network (<output_dir>/network of an earlier run)")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().requires_grad_(False)
    if network.pretrained_cfg.get("label_names") != names:
        cli_error(f"distill_from: {folder} was not trained on these classes, or has no classifier")
    return network


def create_network(args: ModelArguments, names: list[str]) -> tuple[torch.nn.Module, dict]:
    """The network to train, and its evaluation pipeline in timm's format."""
    try:
        network = timm.create_model(args.model, num_classes=len(names), **json.loads(args.model_args))
    except json.JSONDecodeError as error:
        cli_error(f"model_args must be a JSON object such as '{{\"depth\": 6}}': {error}")
    except (RuntimeError, TypeError, AssertionError) as error:  # timm's for unknown names, arguments and sizes
        cli_error(f"timm cannot create {args.model} with {args.model_args}: {error}")
    try:
        check_images(network, args.model)
        if isinstance(network, VisionTransformer):  # another network can guide one (distill_from)
            check_backbone(network, args.model)
    except ValueError as error:
        cli_error(f"model: {error}")
    expected = get_model_input_config(network)
    channels, size, _ = expected["input_size"]
    if args.image_size and args.image_size != size and expected["fixed_input_size"]:
        cli_error(f"image_size is {args.image_size}, but this network's is {size}: set img_size in model_args instead")
    size = args.image_size or size
    cfg = network.pretrained_cfg
    mean = cfg["mean"] if args.mean is None else (args.mean,) * channels
    std = cfg["std"] if args.std is None else (args.std,) * channels
    pipeline = {"input_size": (channels, size, size), "interpolation": "bicubic", "crop_pct": 1.0}
    return network, pipeline | {"mean": mean, "std": std}


def save_network(network: torch.nn.Module, folder: Path, pipeline: dict, names: list[str]) -> None:
    """Writes `folder`/network and, without classifier and in half precision, `folder`/backbone."""
    label_names = {"label_names": names}
    network.to(memory_format=torch.contiguous_format)
    for name in ("network", "backbone"):
        if name == "backbone":
            network.reset_classifier(0)
            network, label_names = network.half(), {}
        save_for_hf(network, folder / name, model_config=label_names, data_config=pipeline, safe_serialization=True)
        config = json.loads((folder / name / "config.json").read_text())
        config["model_args"].pop("num_classes")  # is in the file already; some readers fail if it is there twice
        for key in ("tag", "license", "origin_url", "test_crop_pct"):  # of weights that are not these
            config["pretrained_cfg"].pop(key, None)
        write_json(folder / name / "config.json", config)
        seal_file(folder / name / "model.safetensors")


def made_of(
    model_args: ModelArguments, args: PretrainingConfig, splits: Splits, guide: torch.nn.Module | None, accelerator
) -> dict[str, Any]:
    """What determines the trained weights, by content and not by path; it must be the same in a resumed run."""
    of_the_call = {"output_dir", "resume_from_checkpoint", "dataloader_num_workers", "distill_from"}
    given = {name: value for name, value in {**asdict(model_args), **asdict(args)}.items() if name not in of_the_call}
    images = {split: ordered_digest(image_digests(view), read_labels(view)) for split, view in splits.items()}
    guided_by = None if guide is None else backbone_digest(guide)
    return {**given, "images": images, "weights of distill_from": guided_by, "processes": accelerator.num_processes}


def load_checkpoint(file: Path, origin: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The state after the last finished epoch, of a run with the same origin."""
    try:
        verify(file)
        state = torch.load(file, map_location=device, weights_only=True)
    except DamagedFile as error:
        cli_error(f"{error}: start again in another output_dir")
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:  # of an earlier version, which had no checksum
        cli_error(f"{file} is damaged ({' '.join(str(error).split())[:200]}): start again in another output_dir")
    before = state.get("made_of", origin)
    changed = [
        f"{name} was {before.get(name)}, is now {value}" for name, value in origin.items() if before.get(name) != value
    ]
    if changed:
        cli_error(f"the run in {file.parent} cannot be resumed with other settings: {'; '.join(changed)}")
    return state


def distillation_loss(logits: torch.Tensor, guidance: torch.Tensor, temperature: float) -> torch.Tensor:
    """Loss of Hinton et al.: KL of softened predictions (B, C), scaled to keep the size of the gradients."""
    soft = (guidance / temperature).softmax(1)
    return F.kl_div((logits / temperature).log_softmax(1), soft, reduction="batchmean") * temperature**2


def optimizer_of(network: torch.nn.Module, args: PretrainingConfig) -> torch.optim.AdamW:
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)


def rate_at(epoch: float, args: PretrainingConfig) -> float:
    """Linear warm-up, then cosine; `epoch` is fractional."""
    if epoch < args.warmup_epochs:
        return args.learning_rate * epoch / args.warmup_epochs
    done = (epoch - args.warmup_epochs) / max(args.num_train_epochs - args.warmup_epochs, 1e-9)
    return args.learning_rate * (1 + math.cos(math.pi * done)) / 2


@torch.inference_mode()
def accuracy(network: torch.nn.Module, batches: Batches, accelerator: Accelerator, normalize) -> float:
    """Share (%) of right first guesses on held-out images."""
    network.eval()
    right = []
    for batch in batches:
        with accelerator.autocast():
            guesses = network(normalize(batch["pixel_values"])).argmax(1)
        right.append(accelerator.gather_for_metrics(guesses == batch["labels"]))
    return 100 * torch.cat(right).float().mean().item()


def main():
    parsed = data_args, model_args, args = parse(
        (DataArguments, ModelArguments, PretrainingConfig), description=__doc__
    )
    output = Path(args.output_dir)
    checkpoint_file = output / "checkpoint.pt"
    if output.exists() and any(output.iterdir()) and not args.resume_from_checkpoint:
        cli_error(f"output_dir {output} is not empty: give another one, or --resume_from_checkpoint to continue it.")
    if args.resume_from_checkpoint and not checkpoint_file.is_file():
        cli_error(f"output_dir {output} holds no checkpoint.pt to resume from.")
    if args.batch_size % 2:
        cli_error(f"batch_size is {args.batch_size}; images are mixed in pairs, so it must be even.")
    loaders = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed)
    accelerator = Accelerator(dataloader_config=loaders)
    torch.manual_seed(args.seed)
    if accelerator.device.type == "cpu":
        # torch's fused attention is slow backwards there: in bf16, width 192, 26 tokens, 618 against 995 images/s
        timm.layers.set_fused_attn(False)

    # Data
    try:
        splits = load_image_dataset(data_args.dataset, **source_options(data_args), seed=args.seed)
    except DatasetError as error:
        cli_error(str(error))
    names = splits["train"].features["label"].names
    if len(splits["train"]) < args.batch_size * accelerator.num_processes:
        cli_error(f"batch_size is {args.batch_size}, but {data_args.dataset} has only {len(splits['train'])} images")

    # Networks: the one that learns, its running average, the one that guides
    network, pipeline = create_network(model_args, names)
    guide = load_network(model_args.distill_from, names) if model_args.distill_from else None
    network.to(accelerator.device, memory_format=torch.channels_last)  # convolutions are up to twice as fast
    if guide:
        guide.to(accelerator.device, memory_format=torch.channels_last)
    average = ModelEmaV3(network, decay=args.ema_decay, use_warmup=True)
    processor = image_processor_for(pipeline, normalization="none")
    mean, std = (torch.tensor(pipeline[key], device=accelerator.device).view(-1, 1, 1) for key in ("mean", "std"))

    # Batches
    train, test = (
        TaskImages(splits[split], np.arange(len(names)), eval_transform(processor)) for split in ("train", "test")
    )
    options = {"batch_size": args.batch_size, "num_workers": args.dataloader_num_workers}
    train_loader = DataLoader(train, shuffle=True, drop_last=True, **options)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        network, optimizer_of(network, args), train_loader, DataLoader(test, **options)
    )

    test_batches = Batches(test_loader, test)

    # Training
    mixing = Mixup(
        mixup_alpha=0.4,
        cutmix_alpha=1.0,
        prob=args.mixing,
        label_smoothing=args.label_smoothing,
        num_classes=len(names),
    )
    cross_entropy = SoftTargetCrossEntropy()

    def normalize(images):
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    start, seconds, origin = 0, 0.0, made_of(model_args, args, splits, guide, accelerator)
    if args.resume_from_checkpoint:
        state = load_checkpoint(checkpoint_file, origin, accelerator.device)
        network.load_state_dict(state["network"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds = state["epochs"], state["seconds"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])

    steps = len(train_loader)
    bar = tqdm(
        total=args.num_train_epochs * steps,
        initial=start * steps,
        disable=not accelerator.is_main_process,
        mininterval=1,
    )
    for epoch in range(start, args.num_train_epochs):
        # every epoch starts from its own seed, so that a resumed run continues exactly
        key = np.random.SeedSequence([args.seed, epoch, accelerator.process_index])
        torch.manual_seed(int(key.generate_state(1)[0]))
        np.random.seed(key.generate_state(2)[1])  # timm's mixing
        train_loader.set_epoch(epoch)
        model.train()
        began, losses, right = time.time(), [], []
        for step, batch in enumerate(Batches(train_loader, train)):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(epoch + (step + 1) / steps, args)
            images = augment(batch["pixel_values"], args.augmentation)
            images, targets = mixing(images, batch["labels"])
            images = normalize(images)
            with accelerator.autocast():
                logits = model(images)
                guidance = guide(images) if guide else None
            logits = logits.float()
            if guide:
                loss = distillation_loss(logits, guidance.float(), model_args.temperature)
            else:
                loss = cross_entropy(logits, targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update(network, step=epoch * steps + step)
            losses.append(loss.detach())
            right.append((logits.argmax(1) == batch["labels"]).float().mean())
            bar.update()
            if step % 20 == 0:
                bar.set_postfix_str(f"epoch {epoch + 1}, loss {losses[-1]:.2f}, accuracy {100 * right[-1]:.0f} %")
        seconds += time.time() - began
        entry = {"epoch": epoch + 1, "loss": torch.stack(losses).mean().item(), "seconds": round(seconds)}
        entry |= {"train_accuracy": 100 * torch.stack(right).mean().item()}
        entry |= {"test_accuracy": accuracy(average.module, test_batches, accelerator, normalize)}
        if accelerator.is_main_process:
            tqdm.write(json.dumps({key: round(value, 3) for key, value in entry.items()}))
            state = {"network": network.state_dict(), "average": average.module.state_dict(), "epochs": epoch + 1}
            state |= {"optimizer": optimizer.state_dict(), "seconds": seconds, "made_of": origin}
            if accelerator.scaler is not None:
                state["scaler"] = accelerator.scaler.state_dict()
            content = io.BytesIO()
            torch.save(state, content)
            with atomic_write(checkpoint_file, checksum=True) as file:
                file.write(content.getbuffer())
    bar.close()

    # Results
    final = accuracy(average.module, test_batches, accelerator, normalize)
    if accelerator.is_main_process:
        result = {"arguments": to_dict(parsed), "seconds": round(seconds), "test_accuracy": final}
        save_network(average.module, output, pipeline, names)
        if data_args.probe:
            backbone = timm.create_model(f"local-dir:{output / 'backbone'}", pretrained=True)
            result |= probe(backbone, data_args.probe)
        write_json(output / "results.json", result)
        print(", ".join(f"{name} {value:.1f} %" for name, value in result.items() if isinstance(value, float)))
    accelerator.end_training()


if __name__ == "__main__":
    main()
