"""Classification of image files with a saved model.

    cdl-hf predict runs/my_run/student drawing.png photos/ --output predictions.csv --top_k 3

Folders are searched recursively. Files that cannot be read are listed and counted, and the others are classified.
Images are opened as in training: upright, transparency on white, 16-bit gray scaled to 8 bits. None is inverted unless
asked for: models of the bundled drawings want white lines on black, and a warning counts images that look inverted.
In CSV, an apostrophe precedes a name that a spreadsheet would take for a formula, such as `=1+1`; in JSON it does not.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from ..cli import argument, cli_error, parse
from ..console import ends_with_reader
from ..escaping import csv_table


@dataclass
class PredictArguments:
    """Model and images."""

    checkpoint: str = argument("Folder of a saved model, or its name on the Hub", positional=True)
    files: list[str] = argument("Images and folders of images", positional=True)
    output: str | None = argument("File to write, .csv or .json", None, unset="CSV on the terminal")
    top_k: int = argument("Number of classes per image, the most probable first", 5, min=1)
    as_drawings: bool = argument(
        "Whether to make images like the bundled drawings: white on black, cropped, centered", False
    )
    batch_size: int = argument("Images per step", 64, min=1)
    dataloader_num_workers: int = argument("Number of processes that read images", 0, min=0, aliases=("num_workers",))

    def __post_init__(self):
        if self.output is not None and Path(self.output).suffix not in (".csv", ".json"):
            raise ValueError("output must end in .csv or .json")
        if self.output is not None and not Path(self.output).parent.is_dir():
            raise ValueError(f"output cannot be written: there is no folder {Path(self.output).parent}")


@ends_with_reader()
def main(argv: list[str] | None = None) -> None:
    (args,) = parse((PredictArguments,), argv, description=__doc__)

    from ..data.image_files import ImageFiles, find_image_files
    from ..data.sketch import INVERTED
    from ..data.sources import dataset_spec
    from ..hub.saved_models import load_saved_model, trained_on
    from ..utils import write_text

    try:
        files = find_image_files(args.files)
        saved = load_saved_model(args.checkpoint)
    except ValueError as error:
        cli_error(str(error))
    look = Look(saved.image_processor, args.as_drawings, dataset_spec(trained_on(args.checkpoint)).is_drawings)
    predictions, unreadable, inverted = predict(saved, ImageFiles(files, look), args)
    if args.output is None:
        print(as_csv(predictions), end="")
    else:
        is_json = args.output.endswith(".json")
        content = {"checkpoint": args.checkpoint, "answers": predictions, "unreadable": unreadable}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n" if is_json else as_csv(predictions)
        try:
            write_text(Path(args.output), text)
        except OSError as error:
            cli_error(f"output {args.output} cannot be written: {error.strerror}")
    for file, reason in unreadable.items():
        print(f"{file}: {reason}", file=sys.stderr)
    if inverted:
        warning = f"{len(inverted):,} of {len(files):,} images, such as {inverted[0]}: each {INVERTED}"
        print(f"{warning}; --as_drawings makes them like those", file=sys.stderr)
    left_out = f"; {len(unreadable):,} cannot be read" if unreadable else ""
    print(f"{len(predictions):,} of {len(files):,} images classified{left_out}", file=sys.stderr)
    sys.exit(0 if predictions else 1)


class Look:
    """PIL image -> (tensor (3, H, W), whether it looks inverted to a model of drawings); a blank one stays blank."""

    def __init__(self, image_processor, as_drawings: bool, wants_drawings: bool):
        from ..data import eval_transform

        self.transform = eval_transform(image_processor)
        self.as_drawings, self.wants_drawings = as_drawings, wants_drawings

    def __call__(self, image):
        from ..data.sketch import as_drawing, looks_inverted

        if self.as_drawings:
            return self.transform(as_drawing(image) or image), False
        return self.transform(image), self.wants_drawings and looks_inverted(image)


def predict(saved, images, args: PredictArguments) -> tuple[list[dict], dict[str, str], list[str]]:
    """The most probable classes of each readable file, why each other cannot be read, and which look inverted."""
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    names = saved.class_names
    predictions: list[dict] = []
    unreadable: dict[str, str] = {}
    inverted: list[str] = []
    loader = DataLoader(images, args.batch_size, num_workers=args.dataloader_num_workers, collate_fn=list)
    for batch in tqdm(loader, unit="batch", leave=False, disable=None):
        unreadable |= {file: reason for file, _, reason in batch if reason is not None}
        readable = [(file, *looked) for file, looked, reason in batch if reason is None]
        inverted += [file for file, _, is_inverted in readable if is_inverted]
        if not readable:
            continue
        probabilities = saved.logits(torch.stack([pixels for _, pixels, _ in readable])).softmax(1)
        top = probabilities.topk(min(args.top_k, len(names)), dim=1)
        for (file, *_), columns, scores in zip(readable, top.indices.tolist(), top.values.tolist(), strict=True):
            best = [{"label": names[column], "score": score} for column, score in zip(columns, scores, strict=True)]
            predictions.append({"file": file, "classes": best})
    return predictions, unreadable, inverted


def as_csv(predictions: list[dict]) -> str:
    """One line per image: file, label_1, score_1, label_2, ..."""
    count = len(predictions[0]["classes"]) if predictions else 0
    rows = [["file", *(f"{what}_{k + 1}" for k in range(count) for what in ("label", "score"))]]
    for prediction in predictions:
        cells = [cell for each in prediction["classes"] for cell in (each["label"], f"{each['score']:.6f}")]
        rows.append([prediction["file"], *cells])
    return csv_table(rows)


if __name__ == "__main__":
    main()
