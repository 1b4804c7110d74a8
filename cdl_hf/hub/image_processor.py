"""Image processors of saved models, read from untrusted files."""

from collections.abc import Callable, Mapping
from typing import Any

from PIL.Image import Resampling
from transformers import CLIPImageProcessor

from ..models.architecture_args import is_number, is_whole, shown

MAX_SIDE = 8192  # pixels of a resized image: 0.2 GB as RGB
_RESAMPLINGS = (Resampling.NEAREST, Resampling.LANCZOS, Resampling.BILINEAR, Resampling.BICUBIC)


def _is_size(value: Any, *keys: str) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() == set(keys)
        and all(is_whole(side, 1, MAX_SIDE) for side in value.values())
    )


def _is_color(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(is_number(each, low, high) for each in value)


# Fields that the transforms use, with their checks. The transforms always resize, crop and rescale.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "size": (
        lambda value: _is_size(value, "shortest_edge") or _is_size(value, "height", "width"),
        f"a shortest_edge, or height and width, from 1 to {MAX_SIDE}",
    ),
    "crop_size": (lambda value: _is_size(value, "height", "width"), f"height and width from 1 to {MAX_SIDE}"),
    "resample": (
        lambda value: is_whole(value, 0, 9) and value in _RESAMPLINGS,
        ", ".join(f"{method.value} ({method.name.lower()})" for method in _RESAMPLINGS),
    ),
    "rescale_factor": (lambda value: is_number(value, 1e-6, 1e3), "a number from 1e-06 to 1000"),
    "image_mean": (lambda value: _is_color(value, -1e3, 1e3), "three numbers from -1000 to 1000"),
    "image_std": (lambda value: _is_color(value, 1e-6, 1e3), "three numbers from 1e-06 to 1000"),
    "do_normalize": (lambda value: isinstance(value, bool), "true or false"),
    **dict.fromkeys(
        ("do_resize", "do_center_crop", "do_rescale", "do_convert_rgb"), (lambda value: value is True, "true")
    ),
}


def image_processor_of(fields: Mapping[str, Any]) -> CLIPImageProcessor:
    """The image processor with these fields of a preprocessor_config.json; missing fields have CLIP's defaults.

    Fields that predictions do not depend on are ignored.

    Raises:
        ValueError: A field has an invalid value.
    """
    known = {name: fields[name] for name in _FIELDS if name in fields}
    for name, value in known.items():
        fits, wanted = _FIELDS[name]
        if not fits(value):
            raise ValueError(f"{name} in preprocessor_config.json must be {wanted}, got {shown(value)}")
    return CLIPImageProcessor(**known)
