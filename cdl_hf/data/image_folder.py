"""Folders of images, `<class>/...`, or `train/<class>/...` beside `test/<class>/...`; domains may be above classes."""

import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, Value

from .errors import DatasetError, listed
from .image_files import check_name, find_images, has_own_images, holds_images, own_images, subfolders
from .labels import normalized_name
from .splits import find_splits, is_neutral, is_unlabelled, of_split, split_in, split_of


@dataclass(frozen=True)
class Layout:
    """Folders of splits and of classes.

    Args:
        roots: split -> folder that contains its class folders.
        notes: warnings about what was assumed.
        left_out: names of folders among them that are not classes.
        domain_column: name of the column of domains, if `roots` contain folders of domains with the class folders.
    """

    roots: dict[str, Path]
    notes: list[str]
    left_out: frozenset[str] = frozenset()
    domain_column: str | None = None

    @property
    def classes(self) -> set[str]:
        """Names of the folders with images."""
        return {normalized_name(name) for root in self.roots.values() for name in _imaged(root)} - self.left_out


def find_layout(
    path: Path, train_split: str | None = None, test_split: str | None = None, domain_column: str | None = None
) -> Layout:
    """Finds class folders, or split folders with class folders, also below folders that contain only one folder.

    Args:
        train_split, test_split: names of folders or splits, if given.
        domain_column: name of the column of domains, if the class folders are in folders of domains.

    Raises:
        DatasetError: there are no images in class folders, or the splits are ambiguous.
    """
    notes: list[str] = []
    root = path
    while True:
        folders = subfolders(root)
        imaged = {name: folder for name, folder in folders.items() if holds_images(folder)}
        if train_split or test_split:
            roots = _given(folders, {"train": train_split, "test": test_split}, root)
        else:
            roots = _as_splits(root, folders, imaged, notes)
        if roots:
            roots = {name: _unwrapped(folder, notes) for name, folder in roots.items()}
            return Layout(roots, notes, domain_column=domain_column)
        if not imaged:
            found = " (the images in it belong to no class)" if has_own_images(root) else _other_kinds(root)
            raise DatasetError(
                f"'{path}' has no images in class folders{found}; expected <class>/<image file> below it"
            )
        (name, only), *more = imaged.items()
        if more or has_own_images(only) or not _imaged(only):
            break
        root = only
        notes.append(
            f"'{root}' is taken as the folder of the classes: '{root.parent}' has no other folder with images."
        )
    if not more and is_neutral(name):
        raise DatasetError(
            f"'{path}' has no images in class folders: all are in '{only}', whose name is not that of a class; "
            "expected <class>/<image file>"
        )
    if not more:
        notes.append(f"'{root}' has one class: only the folder {name} contains images.")
    left_out = _look_below(root, imaged, notes) if domain_column is None else frozenset()
    if direct := own_images(root):
        notes.append(f"Ignored images in '{root}' outside class folders: {listed(direct, 3)}.")
    if empty := [name for name in folders if name not in imaged]:
        notes.append(f"Ignored folders in '{root}' without images: {listed(empty)}.")
    if broken := sorted(child.name for child in root.iterdir() if child.is_symlink() and not child.exists()):
        notes.append(f"Ignored broken links in '{root}': {listed(broken)}.")
    return Layout({"train": root}, notes, left_out, domain_column)


def read_image_folder(layout: Layout, path: Path) -> DatasetDict:
    """The files, unopened, with the names of their class folders; warns of files of other types.

    Raises:
        DatasetError: a file name is not valid Unicode.
    """
    for note in layout.notes:
        warnings.warn(note, stacklevel=2)
    others: Counter[str] = Counter()
    features, domain = Features(image=Image(), label=Value("string")), layout.domain_column
    deep = [folder for root in layout.roots.values() for folder in _imaged(root).values() if _imaged(folder)]
    if domain is None or not deep:  # without further folders, the files' names may hold the domain: ImageNet-R
        splits = {split: _rows(root, others, layout.left_out) for split, root in layout.roots.items()}
    else:
        features[domain] = Value("string")
        splits = {split: _rows_of_domains(root, others, domain) for split, root in layout.roots.items()}
    if others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(5))
        warnings.warn(
            f"Ignored {others.total():,} files in '{path}' without an image extension ({kinds}).", stacklevel=2
        )
    return DatasetDict({split: Dataset.from_dict(rows, features=features) for split, rows in splits.items()})


def _rows(root: Path, others: Counter, left_out: frozenset[str]) -> dict[str, list]:
    """Images with their class, the first folder below `root`; without a class if there are no class folders."""
    folders = {name: folder for name, folder in subfolders(root).items() if name not in left_out}
    files: list[tuple[str, str | None]] = []
    for name, folder in folders.items():
        found = list(find_images(folder, others))
        if holds_images(folder):  # not only files without suffixes that are not images
            files += [(check_name(file), normalized_name(name)) for file in found]
    files = files or [(check_name(str(root / name)), None) for name in own_images(root)]
    return {"image": [file for file, _ in files], "label": [label for _, label in files]}


def _rows_of_domains(root: Path, others: Counter, column: str) -> dict[str, list]:
    """Images with their class and domain, the second and the first folder below `root`.

    Raises:
        DatasetError: a folder of a domain has no folders of classes.
    """
    rows: dict[str, list] = {"image": [], "label": [], column: []}
    for name, folder in _imaged(root).items():
        if not _imaged(folder) or _are_splits(_imaged(folder)):
            raise DatasetError(
                f"'{folder}' has no folders of classes: with domain_column expected <domain>/<class>/<image file>, or "
                "<split>/<domain>/<class>/<image file>"
            )
        if direct := own_images(folder):
            warnings.warn(f"Ignored images in '{folder}' outside class folders: {listed(direct, 3)}.", stacklevel=3)
        of_domain = _rows(folder, others, frozenset())
        rows["image"] += of_domain["image"]
        rows["label"] += of_domain["label"]
        rows[column] += [normalized_name(name)] * len(of_domain["image"])
    return rows


def _imaged(folder: Path) -> dict[str, Path]:
    return {name: child for name, child in subfolders(folder).items() if holds_images(child)}


def _other_kinds(root: Path) -> str:
    others: Counter[str] = Counter()
    deque(find_images(root, others), maxlen=0)
    kinds = listed([f"{number:,} {kind}" for kind, number in others.most_common(3)])
    return f" (files of other types are ignored: {kinds})" if kinds else ""


def _look_below(root: Path, imaged: dict[str, Path], notes: list[str]) -> frozenset[str]:
    """Checks folders inside the class folders; returns the folders that repeat all others, which are left out.

    Raises:
        DatasetError: only some of the folders contain splits.
    """
    inner = {name: _last_only(folder) for name, folder in imaged.items()}
    below = {name: set() if has_own_images(folder) else set(_imaged(folder)) for name, folder in inner.items()}
    copies = frozenset(n for n, names in below.items() if len(imaged) > 2 and names >= imaged.keys() - {n})
    if copies:
        notes.append(f"Ignored folders in '{root}' that contain copies of all others: {listed(sorted(copies))}.")
    divided = [name for name in below if name not in copies and _are_splits(below[name])]
    if divided and len(divided) < len(imaged) - len(copies):
        raise DatasetError(
            f"'{root}' has folders of images beside the splits in '{inner[divided[0]]}'; give that folder, or "
            "move the others away"
        )
    if divided:
        notes.append(f"Folders in '{root}' are taken as classes although they contain splits: {listed(divided)}.")
    elif deeper := sorted(set().union(*(names for name, names in below.items() if name not in copies))):
        notes.append(
            f"The classes are the folders of '{root}' ({listed(list(imaged))}); folders inside them are not classes: "
            f"{listed(deeper)}."
        )
    return copies


def _last_only(folder: Path) -> Path:
    """The innermost of nested folders that contain only one folder with images each."""
    while not has_own_images(folder) and len(imaged := _imaged(folder)) == 1:
        (folder,) = imaged.values()
    return folder


def _are_splits(names: Iterable[str]) -> bool:
    splits = set(find_splits(names).values())
    return "train" in splits and len(splits) > 1


def _given(folders: dict[str, Path], wanted: dict[str, str | None], root: Path) -> dict[str, Path]:
    """The given folders, and the training folder beside a given test split."""
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
            if len(folders) == 1:  # it may be inside
                return {}
            raise DatasetError(
                f"'{root}' has {'more than one folder' if names else 'no folder'} for {split}_split "
                f"({name or split}); its folders are {listed(names or list(folders)) or 'none'}"
            )
        chosen[names[0]] = folders[names[0]]
    if wanted["test"] is None:  # found by its name
        first = next(iter(chosen))
        chosen |= {name: folders[name] for name in found if found[name] != "train" and name != first}
    return chosen


def _as_splits(root: Path, folders: dict[str, Path], imaged: dict[str, Path], notes: list[str]) -> dict[str, Path]:
    """The folders that are splits; none if they are classes.

    A folder called train may be a class of trains. It is a split if all its images are in class folders, and if there
    is another split or nothing else but images without labels.
    """
    found = find_splits(imaged)
    nested = {name for name in imaged if not has_own_images(imaged[name])}
    parts = {name: split_in(name) for name in nested}
    kinds = {split for split, _ in filter(None, parts.values())}
    trains = of_split(found, "train")
    alike = found and len(found) == len(imaged) or _are_paired(imaged)
    if alike and not nested & set(trains or imaged):
        raise DatasetError(
            f"'{root}' has no images in class folders: its folders {listed(list(imaged))} look like splits, but their "
            "images are not in class folders; expected <split>/<class>/<image file> (rename them if they are classes)"
        )
    alone = all(name in trains or is_unlabelled(name) for name in imaged)
    is_divided = bool(nested & set(trains)) and (len(set(found.values())) > 1 or alone)
    if is_divided or found and len(found) == len(imaged) and not trains:
        left_out = [name for name in imaged if name not in found]
        if left_out:
            notes.append(f"Ignored folders in '{root}' beside its splits {listed(list(found))}: {listed(left_out)}.")
        roots = {name: imaged[name] for name in found}
        if len(set(found.values())) == 1:  # a split without images is an error, unless another one replaces it
            roots |= {name: folder for name, folder in folders.items() if name not in imaged and split_of(name)}
        return roots
    if "train" in kinds and len(kinds) > 1 or len(trains) > 1 and len(trains) == len(imaged):
        raise DatasetError(
            f"'{root}' has folders that look like splits ({listed([n for n in imaged if parts.get(n)])}); choose "
            "those for training and testing with train_split and test_split, or rename them to train and test"
        )
    if nested & set(trains):
        notes.append(
            f"'{root / trains[0]}' is taken as a class: there is no test split beside it. If it is a split, choose it "
            f"with train_split."
        )
    return {}


def _are_paired(names: Iterable[str]) -> bool:
    """Whether all names are splits, and a training and a test split belong together: trainA, trainB, testA."""
    of = defaultdict(set)
    for name in names:
        split, rest = split_in(name) or (None, ())
        of[split].add(rest)
    return None not in of and any(of["train"] & of[split] for split in ("test", "validation"))


def _unwrapped(folder: Path, notes: list[str]) -> Path:
    """The folder with the classes of a split, which may be nested: train/train, train/images."""
    while True:
        imaged = _imaged(folder)
        if len(imaged) != 1 or has_own_images(folder):
            return folder
        ((name, only),) = imaged.items()
        if has_own_images(only) or not _imaged(only) or not _says_nothing_new(name, folder):
            return folder
        notes.append(f"'{only}' is taken as the folder of the classes: '{folder}' has no other folder with images.")
        folder = only


def _says_nothing_new(name: str, folder: Path) -> bool:
    return bool(split_of(name)) or is_neutral(name) or name.casefold() == folder.name.casefold()
