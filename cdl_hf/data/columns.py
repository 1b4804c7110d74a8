"""Which columns of a data set hold its images and its classes."""

from datasets import Array2D, Array3D, ClassLabel, Features, Image, LargeList, List, Value
from datasets.features.features import FeatureType

from .dataset_error import DatasetError

USUAL_IMAGE_COLUMNS = ("image", "img")
USUAL_LABEL_COLUMNS = ("label", "labels", "fine_label", "wnid")
# Of the others only one may be there, and those of a line only where there is none of the lines before.
IMAGE_COLUMNS = (
    USUAL_IMAGE_COLUMNS,
    (
        *("file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "image_name"),
        *("image_file", "image_filename", "images", "filenames", "filepaths"),
    ),
    ("image_id", "img_id", "imageid"),
    ("id",),
)
LABEL_COLUMNS = (
    USUAL_LABEL_COLUMNS,
    ("class", "class_name", "category", "target", "label_name", "species", "breed", "y"),
    ("class_id", "classid", "category_id", "label_id"),
)


def image_column(features: Features, given: str | None, name: str) -> str:
    """The column given, else the one of type Image, else the one with a usual name.

    Raises:
        DatasetError: there is none, or more than one, or what it holds is not one image a row.
    """
    column = _column(features, given, Image, IMAGE_COLUMNS, "image", name)
    if not _can_be_images(features[column]):
        raise DatasetError(
            f"'{name}' has {_kind(features[column])} in its column '{column}'; expected one image a row: "
            "a file's bytes, its path, or an array of pixels."
        )
    return column


def label_column(features: Features, given: str | None, name: str) -> str:
    """The column given, else the only ClassLabel, else the one with a usual name.

    Raises:
        DatasetError: there is none, or more than one.
    """
    return _column(features, given, ClassLabel, LABEL_COLUMNS, "label", name)


def usual_column(columns: list[str], given: str | None, usual: tuple[tuple[str, ...], ...]) -> str | None:
    """The column given if it is there, else the first with a usual name, else the only one with another such name.

    Args:
        usual: such as `IMAGE_COLUMNS`.
    """
    if given:
        return given if given in columns else None
    by_name = {column.strip().casefold(): column for column in columns}
    first, *others = ([by_name[name] for name in names if name in by_name] for names in usual)
    found = next(filter(None, [first[:1], *others]), [])
    return found[0] if len(found) == 1 else None


def _column(
    features: Features, given: str | None, kind: type, usual: tuple[tuple[str, ...], ...], what: str, name: str
) -> str:
    if given:
        if given not in features:
            raise DatasetError(f"'{name}' has no column '{given}'; its columns are {', '.join(features)}.")
        return given
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    found = [column for column in usual[0] if column in found][:1] or found
    if not found:
        column = usual_column(list(features), None, usual)
        found = [column] if column else []
    if len(found) != 1:
        raise DatasetError(
            f"'{name}' has {'more than one' if found else 'no'} column that can be the {what} "
            f"({', '.join(found or features)}); choose it with {what}_column."
        )
    return found[0]


def _can_be_images(feature: FeatureType) -> bool:
    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    if isinstance(feature, dict):
        return {"bytes", "path"} <= feature.keys()
    depth = 0
    while isinstance(feature, List | LargeList):
        feature, depth = feature.feature, depth + 1
    if depth:  # rows of pixels
        return depth in (2, 3) and isinstance(feature, Value) and ("int" in feature.dtype or "float" in feature.dtype)
    return isinstance(feature, Image | Array2D | Array3D)


def _kind(feature: FeatureType) -> str:
    if isinstance(feature, List | LargeList):
        inner = feature.feature
        return "lists of images" if isinstance(inner, Image) else "lists"
    return f"values of type {feature.dtype}" if isinstance(feature, Value) else f"a {type(feature).__name__}"
