"""Fields of transformers in a configuration file, which is untrusted."""

import re
from typing import Any

from .architecture_args import is_whole, shown

MAX_CLASSES = 1_000_000
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Names that are not fields: those allowed in a file, and those that transformers reads only for other models.
INHERITED = ("model_type", "num_labels", "name_or_path", "output_attentions", "use_return_dict")
FOREIGN = (
    *("rope_theta", "rope_parameters", "layer_types"),
    # these make transformers read other files or use other packages
    *("configuration_files", "transformers_weights", "quantization_config"),
)


def check_inherited(config: dict[str, Any]) -> None:
    """Checks fields of transformers that would make it fail or download code.

    Raises:
        ValueError: A field has a value that no model of this package can have.
    """
    for name in ("dtype", "torch_dtype"):
        if config.get(name) is not None and str(config[name]) not in DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {shown(config[name])}")
    if config.get("attn_implementation") not in (None, "sdpa", "eager"):
        raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {shown(config['attn_implementation'])}")
    names = config.get("id2label")
    is_names = isinstance(names, dict) and all(re.fullmatch(r"\d{1,7}", str(key)) for key in names)
    if names is not None and not (is_names and all(isinstance(name, str) for name in names.values())):
        raise ValueError(f"id2label must map class ids to names, got {shown(names)}")
    if "num_labels" in config and not is_whole(config["num_labels"], 0, MAX_CLASSES):
        raise ValueError(f"num_labels must be at most {MAX_CLASSES:,}, got {shown(config['num_labels'])}")
