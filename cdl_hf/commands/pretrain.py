"""Supervised pre-training of a backbone for a domain that has none, on any data set of images with classes.

    cdl-hf pretrain --dataset my_images --model vit_tiny_patch16_224 \\
        --model_args '{"img_size": 64, "patch_size": 8, "depth": 6}' --output_dir runs/backbone

    accelerate launch --mixed_precision bf16 -m cdl_hf.commands.pretrain \\
        --dataset my_photographs --images photographs --model vit_tiny_patch16_224 \\
        --model_args '{"img_size": 32, "patch_size": 4, "embed_dim": 256}' \\
        --batch_size 1024 --mixing 0.8 --drop_path 0.1 --torch_compile --time_limit 300 --output_dir runs/backbone

The result, `<output_dir>/backbone`, is a folder in timm's format. `--teacher` and `--student` of `cdl-hf train` accept
it, and `timm.create_model("local-dir:<folder>", pretrained=True)` loads it. A Vision Transformer that training would
refuse is refused here before training. `<output_dir>/network` is the same network with its classifier; another network
can learn from its soft labels on the same data (`--distill_from`), whatever its timm architecture and its size of
images.

All images are decoded once and kept as bytes on the device, where they are augmented in batches; see
cdl_hf/pretraining/augmentation.py. The schedule ends after `--num_train_epochs` or, however fast the machine is, after
`--time_limit` seconds, whichever comes first.
"""

import io
import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup
from timm.layers import DropPath
from timm.loss import SoftTargetCrossEntropy
from timm.models import get_model_input_config
from timm.models.vision_transformer import VisionTransformer
from timm.optim import Muon
from timm.utils import ModelEmaV3
from tqdm import tqdm

from ..cli import cli_error, parse, to_dict
from ..data.labels import complete_labels, read_labels
from ..data.loading import load_image_dataset
from ..data.splits import Splits
from ..data.views import image_digests, ordered_digest
from ..hub.saved_backbones import save_backbone
from ..models.architecture_args import check_architecture
from ..models.backbones import backbone_digest
from ..models.network_checks import check_images
from ..pretraining.arguments import DataArguments, ModelArguments, PretrainingConfig
from ..pretraining.augmentation import PhotographAugmentation, augment_drawings
from ..pretraining.card import backbone_card, describe
from ..pretraining.device_images import DeviceImages, TrainingBatches
from ..pretraining.probe import probe
from ..pretraining.progress import Progress
from ..runs.interruptions import interruptible
from ..training.build import source_options
from ..utils import DamagedFile, atomic_write, verify, write_json, write_text

Network = Any  # a timm model of any architecture; timm declares no class with what they have in common


def load_network(folder: str, names: list[str]) -> Network:
    """A network saved by an earlier run, whose soft labels are used; its classes must be the same, in this order."""
    if not (Path(folder) / "config.json").is_file():
        cli_error(f"distill_from: {folder} is not a saved network (<output_dir>/network of an earlier run)")
    network: Network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().requires_grad_(False)
    if network.pretrained_cfg.get("label_names") != names:
        cli_error(f"distill_from: {folder} was not trained on these classes, or has no classifier")
    return network


def create_network(args: ModelArguments, names: list[str]) -> tuple[Network, dict]:
    """The network to train, and its evaluation pipeline in timm's format."""
    try:
        model_args = json.loads(args.model_args)
        if not isinstance(model_args, dict):
            raise ValueError(f"model_args must be a JSON object such as '{{\"depth\": 6}}', got {args.model_args}")
        check_architecture("model", args.model, model_args)  # load_backbone will, when hours have been spent
        network: Network = timm.create_model(args.model, num_classes=len(names), **model_args)
    except json.JSONDecodeError as error:
        cli_error(f"model_args must be a JSON object such as '{{\"depth\": 6}}': {error}")
    except ValueError as error:
        cli_error(str(error))
    except (RuntimeError, TypeError, AssertionError) as error:  # timm's for unknown names, arguments and sizes
        cli_error(f"timm cannot create {args.model} with {args.model_args}: {error}")
    try:
        check_images(network, args.model)
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


def save_network(network: Network, folder: Path, pipeline: dict, names: list[str]) -> None:
    """Writes `folder`/network and, without classifier and in half precision, `folder`/backbone."""
    save_backbone(network, folder / "network", pipeline, names)
    network.reset_classifier(0)
    save_backbone(network.half(), folder / "backbone", pipeline)


def made_of(
    data_args: DataArguments,
    model_args: ModelArguments,
    args: PretrainingConfig,
    splits: Splits,
    guide: Network | None,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What determines the trained weights, by content and not by path; it must be the same in a resumed run."""
    of_the_call = {"output_dir", "resume_from_checkpoint", "dataloader_num_workers", "distill_from"}
    of_the_call |= {"time_limit", "save_epochs", "torch_compile"}
    given = {name: value for name, value in {**asdict(model_args), **asdict(args)}.items() if name not in of_the_call}
    images = {split: ordered_digest(image_digests(view), read_labels(view)) for split, view in splits.items()}
    given |= {"augmented as": data_args.images, "stored_size": data_args.stored_size}
    guided_by = None if guide is None else backbone_digest(guide)
    given |= {"processes": accelerator.num_processes, "mixed_precision": accelerator.mixed_precision}
    return {**given, "images": images, "weights of distill_from": guided_by}


def load_checkpoint(file: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """The state after the last finished epoch, of a run with the same origin."""
    try:
        verify(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except DamagedFile as error:
        cli_error(f"{error}: start again in another output_dir")
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:  # of an earlier version, which had no checksum
        cli_error(f"{file} is damaged ({' '.join(str(error).split())[:200]}): start again in another output_dir")
    before = origin | state.get("made_of", {})  # an earlier version has had fewer settings
    changed = [f"{name} was {before[name]}, is now {value}" for name, value in origin.items() if before[name] != value]
    if changed:
        cli_error(f"the run in {file.parent} cannot be resumed with other settings: {'; '.join(changed)}")
    return state


def distillation_loss(logits: torch.Tensor, guidance: torch.Tensor, temperature: float) -> torch.Tensor:
    """Loss of Hinton et al.: KL of softened predictions (B, C), scaled to keep the size of the gradients."""
    soft = (guidance / temperature).softmax(1)
    return F.kl_div((logits / temperature).log_softmax(1), soft, reduction="batchmean") * temperature**2


def optimizer_of(network: torch.nn.Module, args: PretrainingConfig) -> torch.optim.Optimizer:
    """AdamW or timm's Muon, whose updates are scaled as AdamW's and which leaves biases, norms and tokens to AdamW."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    if args.optimizer == "muon":
        return Muon(groups, lr=args.learning_rate, weight_decay=args.weight_decay)
    fused = all(p.is_cuda for p in network.parameters())
    return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay, fused=fused)


def rate_at(epoch: float, args: PretrainingConfig) -> float:
    """Linear warm-up, then cosine; `epoch` is fractional."""
    if epoch < args.warmup_epochs:
        return args.learning_rate * epoch / args.warmup_epochs
    done = (epoch - args.warmup_epochs) / max(args.num_train_epochs - args.warmup_epochs, 1e-9)
    return args.learning_rate * (1 + math.cos(math.pi * done)) / 2


@torch.inference_mode()
def accuracy(network: torch.nn.Module, images: DeviceImages, batch_size: int, accelerator: Accelerator, normalize):
    """Share (%) of right first guesses on held-out images."""
    network.eval()
    right = torch.zeros((), device=accelerator.device)
    for pixels, labels in images.batches(batch_size, accelerator.process_index, accelerator.num_processes):
        with accelerator.autocast():
            right += (network(normalize(pixels)).argmax(1) == labels).sum()
    return 100 * accelerator.reduce(right).item() / len(images)


def set_drop_path(network: torch.nn.Module, share: float) -> None:
    """Stochastic depth of the same share in all blocks, as in DeiT III; so the blocks are compiled only once."""
    if not isinstance(network, VisionTransformer):
        cli_error("drop_path is for Vision Transformers: set drop_path_rate in model_args instead")
    for block in network.blocks:
        block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)


def compile_network(network: torch.nn.Module) -> None:
    """Compiles the stem and each block of a Vision Transformer, whose code torch reuses; or all of another network."""
    parts = [network.patch_embed, *network.blocks] if isinstance(network, VisionTransformer) else [network]
    for module in parts:
        module.compile()


@interruptible("Interrupted: start it again, with --resume_from_checkpoint if an epoch was finished.")
def main(argv: list[str] | None = None) -> None:
    started = time.monotonic()
    parsed = data_args, model_args, args = parse(
        (DataArguments, ModelArguments, PretrainingConfig), argv, description=__doc__
    )
    output = Path(args.output_dir)
    checkpoint_file = output / "checkpoint.pt"
    if output.is_file() or (output.exists() and any(output.iterdir()) and not args.resume_from_checkpoint):
        cli_error(f"output_dir {output} is not empty: give another one, or --resume_from_checkpoint to continue it.")
    if args.resume_from_checkpoint and not checkpoint_file.is_file():
        cli_error(f"output_dir {output} holds no checkpoint.pt to resume from.")
    if data_args.stored_size and data_args.images == "drawings":
        cli_error("stored_size is for photographs: drawings are stored as the network takes them")
    if args.batch_size % 2:
        cli_error(f"batch_size is {args.batch_size}; images are mixed in pairs, so it must be even.")
    accelerator = Accelerator()
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if args.time_limit and world > 1:
        cli_error(f"time_limit is for one process, whose clock ends it, but there are {world}: set num_train_epochs")
    torch.manual_seed(args.seed)
    if device.type == "cpu":
        # torch's fused attention is slow backwards there: in bf16, width 192, 26 tokens, 618 against 995 images/s
        timm.layers.set_fused_attn(False)

    # Data
    try:
        splits = load_image_dataset(data_args.dataset, **source_options(data_args), seed=args.seed)
        for view in splits.values():
            read_labels(view)
        probed = None if data_args.probe is None else load_image_dataset(data_args.probe)
        if probed is not None:
            complete_labels(probed["train"], "train")
    except ValueError as error:
        cli_error(str(error))
    names = splits["train"].features["label"].names
    if len(splits["train"]) < args.batch_size * world:
        cli_error(f"batch_size is {args.batch_size}, but {data_args.dataset} has only {len(splits['train'])} images")

    # Networks: the one that learns, its running average, the one that guides
    network, pipeline = create_network(model_args, names)
    if args.drop_path:
        set_drop_path(network, args.drop_path)
    size = pipeline["input_size"][1]
    guide = load_network(model_args.distill_from, names) if model_args.distill_from else None
    network.to(device, memory_format=torch.channels_last)  # convolutions are up to twice as fast
    if guide:
        guide.to(device, memory_format=torch.channels_last)
    average = ModelEmaV3(network, decay=args.ema_decay, use_warmup=True)
    if args.torch_compile:
        compile_network(network)
    model, optimizer = accelerator.prepare(network, optimizer_of(network, args))

    # Images
    def normalization(cfg: dict) -> Callable[[torch.Tensor], torch.Tensor]:
        mean, std = (torch.tensor(cfg[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
        return lambda pixels: ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

    normalize = normalization(pipeline)
    if guide:
        normalize_for_guide = normalization(guide.pretrained_cfg)
        size_of_guide = tuple(guide.pretrained_cfg["input_size"][1:])

    def guidance_of(images: torch.Tensor) -> torch.Tensor | None:
        """Logits of the guide, which sees the same images in its own size and normalization."""
        if guide is None:
            return None
        if size_of_guide != images.shape[2:]:
            images = F.interpolate(images, size_of_guide, mode="bilinear", antialias=True)
        return guide(normalize_for_guide(images))

    def augmented_drawings(pixels: torch.Tensor) -> torch.Tensor:
        return augment_drawings(pixels.float() / 255, args.augmentation)

    stored, augment = size, augmented_drawings
    if data_args.images == "photographs":
        stored = data_args.stored_size or size * 3 // 2
        augment = PhotographAugmentation(size, pipeline["mean"], args.augmentation)
    train = DeviceImages(splits["train"], stored, device, args.dataloader_num_workers)
    test = DeviceImages(splits["test"], size, device, args.dataloader_num_workers)
    batches = TrainingBatches(train, augment, args.batch_size, rank, world)
    mixing = Mixup(
        mixup_alpha=0.8 if data_args.images == "photographs" else 0.4,
        cutmix_alpha=1.0,
        prob=args.mixing,
        label_smoothing=args.label_smoothing,
        num_classes=len(names),
    )
    cross_entropy = SoftTargetCrossEntropy()

    # Training
    epoch, done, seconds, origin = 0, 0.0, 0.0, made_of(data_args, model_args, args, splits, guide, accelerator)
    if args.resume_from_checkpoint:
        state = load_checkpoint(checkpoint_file, origin)
        network.load_state_dict(state["network"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, seconds = state["epochs"], state["seconds"]
        done = state.get("progress", epoch / args.num_train_epochs)
        if args.time_limit is None and epoch / args.num_train_epochs < done < 1:
            cli_error(f"the run in {output} follows a clock: give --time_limit, the seconds that it has left")
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])

    steps = len(batches)
    deadline = None if args.time_limit is None else started + args.time_limit
    if deadline is not None and time.monotonic() > deadline:
        cli_error(f"time_limit is {args.time_limit} s, but reading the images took longer: give more")
    progress = Progress(args.num_train_epochs * steps, done, deadline)
    bar = tqdm(
        total=args.num_train_epochs * steps,
        initial=epoch * steps,
        disable=not accelerator.is_main_process,
        mininterval=1,
    )
    while done < 1:
        # timm's mixing; every epoch starts from its own seed, so that a resumed run continues exactly
        np.random.seed(np.random.SeedSequence([args.seed, epoch, rank]).generate_state(2)[1])
        model.train()
        began, losses, right = time.monotonic(), [], []
        for step, (images, labels) in enumerate(batches.epoch(args.seed, epoch)):
            rate = rate_at(progress.after(epoch * steps + step + 1) * args.num_train_epochs, args)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, targets = mixing(images, labels)
            with accelerator.autocast():
                logits = model(normalize(images))
                guidance = guidance_of(images)
            logits = logits.float()
            if guidance is not None:
                loss = distillation_loss(logits, guidance.float(), model_args.temperature)
            else:
                loss = cross_entropy(logits, targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update(network, step=epoch * steps + step)
            losses.append(loss.detach())
            right.append((logits.argmax(1) == labels).float().mean())
            bar.update()
            if step % 20 == 0:  # waits for the device
                bar.set_postfix_str(f"epoch {epoch + 1}, loss {losses[-1]:.2f}, accuracy {100 * right[-1]:.0f} %")
                progress.begin()
            done = progress.after(epoch * steps + step + 1)
            if done >= 1:
                break
        epoch += 1
        entry = {"epoch": epoch, "loss": accelerator.reduce(torch.stack(losses).mean(), "mean").item()}
        if not math.isfinite(entry["loss"]) or not all(p.isfinite().all() for p in average.module.parameters()):
            raise SystemExit(
                f"the loss or the weights of epoch {epoch} are not finite numbers: try a lower learning_rate than "
                f"{args.learning_rate}, in another output_dir; {output} is as it was after the epoch before"
            )
        entry |= {"train_accuracy": 100 * torch.stack(right).mean().item()}
        taken = time.monotonic() - began
        seconds += taken
        entry |= {"seconds": round(seconds), "images_per_second": round(len(losses) * args.batch_size * world / taken)}
        if done < 1 and epoch % args.save_epochs:
            continue
        entry |= {"test_accuracy": accuracy(average.module, test, args.batch_size, accelerator, normalize)}
        if accelerator.is_main_process:
            tqdm.write(json.dumps({key: round(value, 3) for key, value in entry.items()}))
            state = {"network": network.state_dict(), "average": average.module.state_dict(), "epochs": epoch}
            state |= {"optimizer": optimizer.state_dict(), "seconds": seconds, "made_of": origin, "progress": done}
            if accelerator.scaler is not None:
                state["scaler"] = accelerator.scaler.state_dict()
            content = io.BytesIO()
            torch.save(state, content)
            with atomic_write(checkpoint_file, checksum=True) as file:
                file.write(content.getbuffer())
    bar.close()

    # Results
    final = accuracy(average.module, test, args.batch_size, accelerator, normalize)
    if accelerator.is_main_process:
        result = {"arguments": to_dict(parsed), "seconds": round(seconds), "epochs": epoch, "test_accuracy": final}
        result |= {"precision": accelerator.mixed_precision, "machine": describe(device)}
        save_network(average.module, output, pipeline, names)
        if probed is not None:
            backbone = timm.create_model(f"local-dir:{output / 'backbone'}", pretrained=True).to(device)
            result |= probe(backbone, probed)
        write_json(output / "results.json", result)
        described = f"{len(train):,} images of {len(names)} classes of {Path(data_args.dataset).name}"
        card = backbone_card(output.name, result, parsed.command_line, described, len(test))
        write_text(output / "backbone" / "README.md", card)
        print(", ".join(f"{name} {value:.1f} %" for name, value in result.items() if isinstance(value, float)))
    accelerator.end_training()


if __name__ == "__main__":
    main()
