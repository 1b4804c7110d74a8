"""Checks that a network takes the images of this package, and what a configuration adds to its blocks."""

from timm.models import get_model_input_config
from torch import nn

from .configuration_prompt_vit import PromptViTConfig
from .networks import block_obstacle, network_of


def check_images(module: nn.Module, name: str) -> None:
    """Checks that a timm network takes square images with three channels, as all images are here.

    Raises:
        ValueError: It takes other images.
    """
    channels, height, width = get_model_input_config(module)["input_size"]
    if channels != 3:
        raise ValueError(f"{name} takes images of {channels} channels, but images here have 3: leave in_chans at 3")
    if height != width:
        raise ValueError(f"{name} takes images of {height} x {width} pixels, but images here are square: set img_size")


def check_prompts(module: nn.Module, config: PromptViTConfig, *, needs_class_token: bool) -> None:
    """Checks that a network takes what a configuration adds to its blocks, and gives what it reads.

    Args:
        needs_class_token: Whether the prompts are added to the class token.

    Raises:
        ValueError: It does not.
    """
    network, obstacle, name = network_of(module), block_obstacle(module), config.backbone
    if obstacle is not None:
        if config.prompt_method != "none":
            raise ValueError(
                f"prompt_method {config.prompt_method!r} changes the blocks of a transformer, and {name} "
                f"{obstacle}: take prompt_method none, or for a teacher teacher_prompt_method none"
            )
        if config.kd_branch not in ("none", "analytic"):
            raise ValueError(
                f"kd_branch {config.kd_branch!r} adds to the tokens of a transformer, and {name} {obstacle}: "
                "take another distillation method"
            )
    if needs_class_token and not network.has_class_token:
        raise ValueError(
            f"prompt_method {config.prompt_method!r} adds to the class token's key and value, and {name} has "
            "no class token: take another prompt_method"
        )
    if config.ranpac_patch_means and not network.has_patch_means:
        raise ValueError(
            f"ranpac_patch_means adds the means of patch tokens to class tokens, and {name} has the means of "
            "its maps alone: leave it out"
        )
