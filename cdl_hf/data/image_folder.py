"""Folders of images, `<class>/...`, or `train/<class>/...` beside `test/<class>/...`."""

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, Value

from .image_search import find_images, has_own_images, holds_images, own_images, subfolders
from .labels import one_name
from .source_error import SourceError, listed
from .split_names import find_splits, is_neutral, is_unlabelled, of_split, split_in, split_of


@dataclass(frozen=True)
class Layout:
    """Which folders are what.

    Args:
        roots: split -> the folder that holds its folders of classes.
        notes: what was decided on the way, in sentences.
    """

    roots: dict[str, Path]
    notes: list[str]

    @property
    def classes(self) -> set[str]:
        """Names of the folders that hold images."""
        return {one_name(name) for root in self.roots.values() for name, folder in _imaged(root).items()}


def find_layout(path: Path, train_split: str | None = None, test_split: str | None = None) -> Layout:
    """Splits of classes, or classes; below folders that hold but one folder.

    Args:
        train_split, test_split: names of folders or of splits, where they are given.

    Raises:
        SourceError: there are no images in folders of classes, or splits that are not understood.
    """
    notes = []
    root = path
    while True:
        folders = subfolders(root)
        imaged = {name: folder for name, folder in folders.items() if holds_images(folder)}
        if train_split or test_split:
            roots = _given(folders, {"train": train_split, "test": test_split}, root)
        else:
            roots = _as_splits(root, folders, imaged, notes)
        if roots:
            return Layout({name: _unwrapped(folder, notes) for name, folder in roots.items()}, notes)
        if not imaged:
            direct = " (those in it belong to no class)" if has_own_images(root) else ""
            raise SourceError(
                f"'{path}' holds no images in folders of classes{direct}; expected <class>/<image file> below it."
            )
        (name, only), *more = imaged.items()
        if more or has_own_images(only) or not _imaged(only):
            break
        root = only
        notes.append(f"'{root}' is taken for the folder of the classes, as '{root.parent}' holds no others.")
    if direct := own_images(root):
        notes.append(f"Left out of '{root}', as they are in no folder of a class: {listed(direct, 3)}.")
    if empty := [name for name in folders if name not in imaged]:
        notes.append(f"No image is in these folders of '{root}', which make no class: {listed(empty)}.")
    if broken := sorted(child.name for child in root.iterdir() if child.is_symlink() and not child.exists()):
        notes.append(f"Left out of '{root}', as they are broken links: {listed(broken)}.")
    return Layout({"train": root}, notes)


def read_image_folder(layout: Layout, path: Path) -> DatasetDict:
    """The files, unopened, with the names of their classes, which are folders. Files of other kinds are named.

    Raises:
        SourceError: a file whose name is no text.
    """
    for note in layout.notes:
        warnings.warn(note, stacklevel=2)
    others = Counter()
    splits = {split: _rows(root, others) for split, root in layout.roots.items()}
    if others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(5))
        warnings.warn(f"Left out of '{path}', as their names are not those of images: {kinds}.", stacklevel=2)
    features = Features(image=Image(), label=Value("string"))
    return DatasetDict({split: Dataset.from_dict(rows, features=features) for split, rows in splits.items()})


def check_name(path: str) -> str:
    """The path, if it is a text.

    Raises:
        SourceError: It is not.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"The file {path!r} has a name that is not UTF-8; rename it.") from error
    return path


def _rows(root: Path, others: Counter) -> dict[str, list]:
    """Each image and its class, the first folder below `root`; without a class, where there are no such folders."""
    folders = subfolders(root)
    files = [(check_name(file), one_name(name)) for name in folders for file in find_images(folders[name], others)]
    files = files or [(check_name(str(root / name)), None) for name in own_images(root)]
    return {"image": [file for file, _ in files], "label": [label for _, label in files]}


def _imaged(folder: Path) -> dict[str, Path]:
    return {name: child for name, child in subfolders(folder).items() if holds_images(child)}


def _given(folders: dict[str, Path], wanted: dict[str, str | None], root: Path) -> dict[str, Path]:
    """The folders that are named, and the training images beside a named test split."""
    found = find_splits(folders)
    chosen = {}
    for split, name in wanted.items():
        if name is None and split == "train":
            names = of_split(found, "train")
        elif name is None:
            continue
        else:
            names = [name] if name in folders else [each for each in found if found[each] == split_of(name)]
        if len(names) != 1:
            if len(folders) == 1:  # perhaps below it
                return {}
            raise SourceError(
                f"'{root}' has {'more than one folder' if names else 'no folder'} for {split}_split "
                f"({name or split}); it has {listed(names or list(folders)) or 'none'}."
            )
        chosen[names[0]] = folders[names[0]]
    if wanted["test"] is None:  # found by its name
        first = next(iter(chosen))
        chosen |= {name: folders[name] for name in found if found[name] != "train" and name != first}
    return chosen


def _as_splits(root: Path, folders: dict[str, Path], imaged: dict[str, Path], notes: list[str]) -> dict[str, Path]:
    """The folders of splits among these; none where they are classes.

    A folder called train among others may well hold trains. It is a split if it has a partner, or is alone but for
    images without labels, and if it holds no images but in folders of classes.
    """
    found = find_splits(imaged)
    nested = {name for name in imaged if not has_own_images(imaged[name])}
    parts = {name: split_in(name) for name in nested}
    kinds = {split for split, _ in filter(None, parts.values())}
    trains = of_split(found, "train")
    if found and len(found) == len(imaged) and not nested & set(trains or found):
        raise SourceError(
            f"'{root}' holds no images in folders of classes: its folders {listed(list(imaged))} look like splits and "
            "their images are in no folder of a class; expected <split>/<class>/<image file>. If they are classes, "
            "rename them, such as class_train."
        )
    alone = all(name in trains or is_unlabelled(name) for name in imaged)
    is_divided = bool(nested & set(trains)) and (len(set(found.values())) > 1 or alone)
    if is_divided or found and len(found) == len(imaged) and not trains:
        left_out = [name for name in imaged if name not in found]
        if left_out:
            notes.append(
                f"Left out of '{root}', as they are beside its splits {listed(list(found))}: {listed(left_out)}."
            )
        roots = {name: imaged[name] for name in found}
        if len(set(found.values())) == 1:  # a split without images is a mistake, unless another takes its place
            roots |= {name: folder for name, folder in folders.items() if name not in imaged and split_of(name)}
        return roots
    if "train" in kinds and len(kinds) > 1 or len(trains) > 1 and len(trains) == len(imaged):
        raise SourceError(
            f"'{root}' has folders that look like splits ({listed([n for n in imaged if parts.get(n)])}); choose the "
            "ones to learn from and to test on with train_split and test_split, or call them train and test."
        )
    if nested & set(trains):
        notes.append(
            f"'{root / trains[0]}' is taken for a class, as there is no test split beside it; if it is a split, "
            f"say so with train_split."
        )
    return {}


def _unwrapped(folder: Path, notes: list[str]) -> Path:
    """Where the classes of a split are: also in train/train, in train/images."""
    while True:
        imaged = _imaged(folder)
        if len(imaged) != 1 or has_own_images(folder):
            return folder
        ((name, only),) = imaged.items()
        if has_own_images(only) or not _imaged(only) or not (split_of(name) or is_neutral(name)):
            return folder
        notes.append(f"'{only}' is taken for the folder of the classes, as '{folder}' holds no others.")
        folder = only
