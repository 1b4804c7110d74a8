"""Architecture names and arguments of timm that a configuration may set, with their bounds.

The configuration of a checkpoint is untrusted. `timm.create_model` also accepts arguments that download, write or read
files (`pretrained_cfg`, `cache_dir`, `checkpoint_path`, ...) and names that do so (`hf-hub:...`); none of these is
allowed here.
"""

import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
MAX_EMBED_DIM = 8192
MAX_STAGES = 10
_NAME = re.compile(r"[a-zA-Z0-9_]{1,100}(\.[a-zA-Z0-9_]{1,100})?")
_FLAGS = (
    "class_token dynamic_img_pad dynamic_img_size fc_norm final_norm fix_init no_embed_class pool_include_prefix "
    "pre_norm proj_bias qk_norm qkv_bias scale_attn_norm scale_mlp_norm"
)
_RATES = "attn_drop_rate drop_path_rate drop_rate patch_drop_rate pos_drop_rate proj_drop_rate"
_NORMS = "layernorm layernormfp32 rmsnorm rmsnormfp32 simplenorm simplenormfp32"
_ACTIVATIONS = (
    "silu swish mish relu relu6 leaky_relu elu prelu celu selu gelu gelu_tanh quick_gelu sigmoid tanh hard_sigmoid "
    "hard_swish hard_mish identity hardsigmoid hardswish"
)

_Check = tuple[Callable[[Any], bool], str]


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether `value` is an integer from `low` to `high`; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether `value` is a finite number from `low` to `high`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _whole(low: int, high: int) -> _Check:
    return lambda value: is_whole(value, low, high), f"an integer from {low} to {high}"


def _number(low: float, high: float) -> _Check:
    return lambda value: is_number(value, low, high), f"a number from {low} to {high}"


def _one_of(*choices: str, normalize: Callable[[str], str] = str) -> _Check:
    shown = ", ".join(repr(choice) for choice in choices)
    return lambda value: isinstance(value, str) and normalize(value) in choices, f"one of {shown}"


def _size(high: int) -> _Check:
    def fits(value: Any) -> bool:
        sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
        return all(is_whole(side, 1, high) for side in sides)

    return fits, f"one or two integers from 1 to {high}"


def _each(check: _Check) -> _Check:
    """One value, or one for each stage of a network."""
    fits, wanted = check

    def all_fit(value: Any) -> bool:
        is_list = isinstance(value, (list, tuple)) and 1 <= len(value) <= MAX_STAGES
        return all(map(fits, value)) if is_list else fits(value)

    return all_fit, f"{wanted}, or at most {MAX_STAGES} of them"


_NORM = _one_of(*_NORMS.split(), normalize=lambda name: name.replace("_", "").lower())
_FLAG: _Check = (lambda value: isinstance(value, bool), "true or false")
ARCHITECTURE_ARGS: dict[str, _Check] = {
    "img_size": _size(4096),
    "patch_size": _size(4096),
    "in_chans": _whole(1, 64),
    "embed_dim": _each(_whole(1, MAX_EMBED_DIM)),
    "depth": _whole(1, MAX_DEPTH),
    "num_heads": _each(_whole(1, 1024)),
    "mlp_ratio": _number(1 / 64, 64),
    # of networks with stages
    **dict.fromkeys(("depths", "layers"), _each(_whole(1, MAX_DEPTH))),
    **dict.fromkeys(("dims", "embed_dims", "channels"), _each(_whole(1, MAX_EMBED_DIM))),
    **dict.fromkeys(("window_size", "window_sizes"), _each(_whole(1, 256))),
    "mlp_ratios": _each(_number(1 / 64, 64)),
    "stem_width": _whole(1, MAX_EMBED_DIM),
    "init_values": _number(-1000, 1000),
    "reg_tokens": _whole(0, 1024),
    "pos_embed": _one_of("", "none", "learn"),
    "global_pool": _one_of("", "avg", "avgmax", "max", "token", "map", "prr"),
    "weight_init": _one_of("", "skip", "reset", "jax", "jax_nlhb", "moco"),
    "norm_layer": _NORM,
    "embed_norm_layer": _NORM,
    "act_layer": _one_of(*_ACTIVATIONS.split(), normalize=str.lower),
    **dict.fromkeys(_FLAGS.split(), _FLAG),
    **dict.fromkeys(_RATES.split(), _number(0, 0.99)),
}


def check_architecture(field: str, name: str, args: dict[str, Any]) -> None:
    """Checks the name and arguments of an architecture without calling timm.

    Args:
        field: Name of the configuration field for the message: `"backbone"` or `"query_backbone"`.
        name: timm name, with or without a tag.
        args: Keyword arguments of `timm.create_model`; `None` keeps the default of the architecture.

    Raises:
        ValueError: The name is not a plain timm name, or an argument is not allowed or out of bounds.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{field} must be the plain name of a timm architecture, got {shown(name)}")
    for arg, value in args.items():
        if arg not in ARCHITECTURE_ARGS:
            raise ValueError(
                f"{field}_args has {shown(arg)}, which a configuration may not set; allowed are "
                f"{', '.join(sorted(ARCHITECTURE_ARGS))}"
            )
        fits, wanted = ARCHITECTURE_ARGS[arg]
        if value is not None and not fits(value):
            raise ValueError(f"{arg} in {field}_args must be {wanted}, got {shown(value)}")
    embed_dim, heads = args.get("embed_dim"), args.get("num_heads")
    if isinstance(embed_dim, int) and isinstance(heads, int) and embed_dim % heads:
        raise ValueError(f"embed_dim in {field}_args must be divisible by num_heads ({heads}), got {embed_dim}")


def shown(value: Any) -> str:
    """Representation of a value, shortened for a message."""
    return shortened(repr(value), 80)


def shortened(text: str, length: int = 1000) -> str:
    """Untrusted text for a message, on one line and at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
