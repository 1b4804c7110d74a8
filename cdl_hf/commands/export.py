"""Export of a saved model to ONNX and torch.export, query pass and prompts included.

    cdl-hf export runs/my_run/student --output_dir exported
    cdl-hf export runs/my_run/student --output_dir exported --int8 --dataset quickdraw100

Writes model.onnx, model.pt2 and, with --int8, model_int8.onnx for any batch size, and for LoRA the folders adapter, in
PEFT's format, and backbone, the merged weights in timm's format, which --student of cdl-hf train takes. Compares the
logits of the files with the model's on batches of several sizes, and prints their size and speed on the CPU. Needs the
extra [export].
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..cli import argument, cli_error, parse
from ..console import ends_with_reader

TOLERANCE = 1e-4  # of a logit
BATCHES = (1, 2, 7, 32)
SOURCE_OPTIONS = ("image_column", "label_column", "domain_column", "test_split", "skip_unreadable_images")


@dataclass
class ExportArguments:
    """Model and files."""

    checkpoint: str = argument("Folder of a saved model, or its name on the Hub", positional=True)
    output_dir: str = argument("Folder for the files")
    int8: bool = argument("Also write ONNX with 8-bit weights in the linear layers", False)
    dataset: str | None = argument(
        "Data whose test images are used for the comparison and for measuring accuracy, as for cdl-hf train",
        None,
        unset="random pixels",
    )
    image_column: str | None = argument("Column of the images", None, unset="found by its type")
    label_column: str | None = argument("Column of the labels", None, unset="found by its type")
    domain_column: str | None = argument(
        "Column of the domains, or a name for folders above those of the classes", None, unset="no domains"
    )
    test_split: str | None = argument(
        "Split to test on", None, unset="found by its name, or all images if there is none"
    )
    skip_unreadable_images: bool = argument("Leave out images that cannot be read, instead of stopping", False)

    def __post_init__(self):
        if self.int8 and self.dataset is None:
            raise ValueError("int8 changes the predictions: give a dataset to measure the loss of accuracy")
        for name in SOURCE_OPTIONS:
            if self.dataset is None and getattr(self, name):
                raise ValueError(f"{name} needs dataset: without it, no images are read")


@ends_with_reader()
def main(argv: list[str] | None = None) -> None:
    (args,) = parse((ExportArguments,), argv, description=__doc__)
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        cli_error(f"{', '.join(missing)} not installed: pip install 'cdl_hf[export]'")

    import torch
    from torch.utils.data import DataLoader

    from ..data import Batches, eval_transform, load_image_dataset
    from ..data.task_images import known_classes
    from ..evaluation.predictions import predict
    from ..evaluation.speed import latency
    from ..hub.export import OnnxModel, export_program, save_int8, save_onnx, save_program
    from ..hub.peft_adapter import save_adapter
    from ..hub.saved_backbones import save_merged_backbone
    from ..hub.saved_models import load_saved_model
    from ..training.run_images import run_of, unseen_images

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # warns about constants that it does not fold
    logging.getLogger().addFilter(lambda record: "pre-processing before quantization" not in record.getMessage())
    folder = Path(args.output_dir)
    try:
        saved = load_saved_model(args.checkpoint)
        images = None
        if args.dataset is not None:
            options = {name: getattr(args, name) for name in SOURCE_OPTIONS}
            view = load_image_dataset(args.dataset, test_fraction=None, **options)["test"]
            view, notes = unseen_images(view, args.dataset, run_of(args.checkpoint))
            images, left_out = known_classes([view], saved.class_names, eval_transform(saved.image_processor))
            for note in [*notes, *([left_out] if left_out is not None else [])]:
                print(f"note: {note}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").touch()
    except OSError as error:
        cli_error(f"output_dir {folder} cannot be written to: {error.strerror}")
    except ValueError as error:
        cli_error(str(error))

    if saved.model.config.prompt_method == "lora":
        save_adapter(saved.model, folder / "adapter")
        try:
            save_merged_backbone(saved, folder / "backbone")
        except ValueError as error:
            print(f"note: the folder backbone is not written: {error}")
    program = export_program(saved)  # moves the model to the CPU, for the comparison
    save_program(program, saved, folder / "model.pt2")
    save_onnx(program, saved, folder / "model.onnx")
    exported = torch.export.load(folder / "model.pt2").module()
    models: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "PyTorch": saved.logits,
        "model.pt2": torch.inference_mode()(exported),
        "model.onnx": OnnxModel(folder / "model.onnx"),
    }
    if args.int8:
        save_int8(folder / "model.onnx", folder / "model_int8.onnx")
        models["model_int8.onnx"] = OnnxModel(folder / "model_int8.onnx")

    batches = comparison_batches(saved, images)
    expected = [saved.logits(batch) for batch in batches]
    differences = {
        name: max((model(batch) - logits).abs().max().item() for batch, logits in zip(batches, expected, strict=True))
        for name, model in models.items()
    }
    accuracies = {}
    if images is not None:
        predictions, labels = predict(models, Batches(DataLoader(images, 64), images))
        accuracies = {name: 100 * (p.class_ids == labels).mean() for name, p in predictions.items()}

    print(f"\n{'':<16}{'MB':>8}{'difference':>13}{'1 image, ms':>14}{'images/s':>11}{'accuracy, %':>14}")
    for name, model in models.items():
        cells = [
            f"{size(folder, name) / 1e6:.2f}" if name != "PyTorch" else "",
            f"{differences[name]:.1e}" if name != "PyTorch" else "",
            f"{latency(model, batches[0]):.2f}",
            f"{1000 * BATCHES[-1] / latency(model, batches[-1]):,.0f}",
            f"{accuracies[name]:.2f}" if accuracies else "",
        ]
        print(f"{name:<16}" + "".join(c.rjust(w) for c, w in zip(cells, (8, 13, 14, 11, 14), strict=True)))
    print(
        f"(difference: maximum over logits, batches of {', '.join(map(str, BATCHES))}; speed: CPU, "
        f"{torch.get_num_threads()} thread(s), images/s in batches of {BATCHES[-1]})"
    )
    stop_if_wrong({name: differences[name] for name in ("model.pt2", "model.onnx")})


def stop_if_wrong(differences: dict[str, float]) -> None:
    """Ends the process with code 1 if a file's logits differ from the model's."""
    wrong = [name for name, difference in differences.items() if not difference <= TOLERANCE]
    if wrong:
        sys.exit(f"{' and '.join(wrong)} differ from the model by more than {TOLERANCE}: do not use them")


def comparison_batches(saved, images) -> list:
    """Pixel values in batches of several sizes: test images spread over the whole stream, or random numbers."""
    import torch

    count = sum(BATCHES)
    if images is None:
        crop = saved.image_processor.crop_size
        pixel_values = torch.randn(count, 3, crop["height"], crop["width"], generator=torch.Generator().manual_seed(0))
    else:
        order = torch.linspace(0, len(images) - 1, count).round().long()
        order = order[torch.randperm(count, generator=torch.Generator().manual_seed(0))]  # tasks mixed in each batch
        pixel_values = images.transform.normalize(torch.stack([images[i]["pixels"] for i in order.tolist()]))
    return list(pixel_values.split(BATCHES))


def size(folder: Path, name: str) -> int:
    """Bytes of a file, including the second file that holds its weights if they are large."""
    return sum(path.stat().st_size for path in folder.glob(f"{name}*"))


if __name__ == "__main__":
    main()
