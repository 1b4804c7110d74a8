"""Names of splits: what folders, files and data sets call their training, validation and test images."""

import re
import unicodedata
from collections.abc import Iterable

_WORDS = {
    "train": ("train", "training", "trn", "trains", "trainval"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development", "holdout", "heldout"),
    "test": ("test", "testing", "tst", "tests", "eval", "evaluation"),
}
# what is written before or after them: seg_train, train_set, TrainImages, images-train, testdata
_BESIDE = (
    *("set", "sets", "data", "dataset", "split", "folder", "dir", "seg", "part", "partition", "sample", "samples"),
    *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "jpg", "jpeg", "png"),
)
_UNLABELLED = (
    "pred",
    "preds",
    "predict",
    "prediction",
    "predictions",
    "unlabeled",
    "unlabelled",
    "extra",
    "inference",
    "submission",
    "submissions",
)
_BESIDE_PATTERN = f"(?:{'|'.join(_BESIDE)})*"
_PATTERNS = {
    split: re.compile(f"{_BESIDE_PATTERN}(?:{'|'.join(words)}){_BESIDE_PATTERN}") for split, words in _WORDS.items()
}


def split_of(name: str) -> str | None:
    """`train`, `validation` or `test`, if the name means one of them and nothing else: Train, val2017, seg_test."""
    found = split_in(name)
    return found[0] if found and not found[1] else None


def split_in(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that is part of the name, and the other words in it: ("train", ("station",)) for train_station."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    splits, rest = [], []
    for word in re.findall(r"[^\W\d_]+", spaced.casefold()):
        split = next((split for split, pattern in _PATTERNS.items() if pattern.fullmatch(word)), None)
        if split:
            splits.append(split)
        elif word not in _BESIDE:
            rest.append(word)
    if not splits or {"train", "test"} <= set(splits):
        return None
    # train_val is trained on, as VOC's trainval is
    return next(split for split in ("train", "test", "validation") if split in splits), tuple(rest)


def is_neutral(name: str) -> bool:
    """Whether the name says nothing of what is in it: images, data_set."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return bool(words) and all(word in _BESIDE for word in words)


def is_unlabelled(name: str) -> bool:
    """Whether what has this name beside the training images is without labels: seg_pred, extra, sample_submission."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return any(word in _UNLABELLED for word in words) and all(word in (*_UNLABELLED, *_BESIDE) for word in words)


def find_splits(names: Iterable[str]) -> dict[str, str]:
    """Which of the names mean a split, and which one: by themselves, or because they differ in nothing else.

    Such as birds_train and birds_test, if there are no others.
    """
    names = list(names)
    found = {name: split for name in names if (split := split_of(name))}
    if "train" in found.values():
        return found
    parts = {name: split_in(name) for name in names}
    if all(parts.values()) and len({rest for _, rest in parts.values()}) == 1:
        return {name: split for name, (split, _) in parts.items()}
    return found


def of_split(names: dict[str, str], wanted: str) -> list[str]:
    """The names of this split from `find_splits`; only the plain one, such as `train`, where that is one of them."""
    found = [name for name, split in names.items() if split == wanted]
    plain = [name for name in found if name.casefold() == wanted]
    return plain if len(plain) == 1 else found
