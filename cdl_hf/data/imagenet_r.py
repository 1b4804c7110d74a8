"""ImageNet-R: its 200 WordNet synsets as classes with readable names, and the rendition in each file name."""

import re
from importlib.resources import files

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from .errors import DatasetError
from .views import image_paths

RENDITION = "rendition"  # the column
_IN_FILE_NAME = r"(?P<rendition>[a-z]+)_\d+\.\w+$"  # such as art_0.jpg


def is_imagenet_r(classes: list[str], name: str) -> bool:
    """Whether the class names are the synsets of ImageNet-R.

    Raises:
        DatasetError: most of them are, but some are missing or do not belong to it.
    """
    if not all(re.fullmatch(r"n\d{8}", each) for each in classes):
        return False
    expected, found = set(_lines("imagenet_r_synsets.txt")), set(classes)
    if 2 * len(expected & found) <= max(len(expected), len(found)):
        return False  # ImageNet itself, or a small part of it
    if expected != found:
        missing, foreign = sorted(expected - found), sorted(found - expected)
        parts = [f"lacks {len(missing)} of its 200 classes ({_few(missing)})"] if missing else []
        parts += [f"has {len(foreign)} other classes ({_few(foreign)})"] if foreign else []
        raise DatasetError(f"{name!r} looks like ImageNet-R but {' and '.join(parts)}; extract the archive again")
    return True


def readable_names(synsets: list[str]) -> list[str]:
    """The first WordNet lemma of each synset, such as goldfish for n01443537; ImageNet-R has no two alike."""
    lemmas = dict(line.split("\t", 1) for line in _lines("imagenet_synset_to_lemma.txt"))
    return [lemmas[synset].split(",")[0] for synset in synsets]


def add_rendition(dataset: Dataset) -> Dataset:
    """The data set with a column `rendition` (art, cartoon, ...), which is null where a file name has none."""
    found = pc.extract_regex(image_paths(dataset), _IN_FILE_NAME)
    renditions = pc.struct_field(found, RENDITION)
    return dataset.add_column(RENDITION, pa.chunked_array(renditions.chunks, pa.string()), feature=Value("string"))


def _lines(file: str) -> list[str]:
    return (files("timm.data") / "_info" / file).read_text(encoding="utf-8").splitlines()


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
