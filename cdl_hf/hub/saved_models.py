"""Saved models with their image processors, from a folder, a run or the Hub."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPImageProcessor, PreTrainedConfig

from ..data.hub import hub_answers
from ..models import PromptViTConfig, PromptViTForImageClassification
from ..utils import verify

ROLES = ("teacher", "student")


@dataclass(frozen=True)
class SavedModel:
    """A model in evaluation mode, and what prepares its images."""

    model: PromptViTForImageClassification
    image_processor: CLIPImageProcessor

    @property
    def class_names(self) -> list[str]:
        """Names of the classes seen, by column."""
        return [self.model.config.id2label[column] for column in range(self.model.config.seen_classes)]

    @torch.inference_mode()
    def logits(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) on any device -> (B, C_seen) in float32."""
        return self.model(pixel_values.to(self.model.device)).logits.float()


def is_run(folder: str | Path) -> bool:
    """Whether this is the output folder of a run."""
    return (Path(folder) / "args.yaml").is_file()


def load_run(folder: str | Path) -> dict[str, SavedModel]:
    """The models that a finished run has left, by role.

    Raises:
        ValueError: There are none, or one cannot be loaded.
    """
    roles = [role for role in ROLES if (Path(folder) / role / "config.json").is_file()]
    if not roles:
        raise ValueError(f"the run in {folder} has left neither teacher/ nor student/: it is not finished")
    return {role: load_saved_model(Path(folder) / role) for role in roles}


def load_saved_model(source: str | Path) -> SavedModel:
    """A model by its folder or its name on the Hub, on the accelerator if there is one.

    Raises:
        ValueError: There is none, it is damaged or of another kind, or it has seen no class.
    """
    if is_run(source):
        raise ValueError(f"{source} is the folder of a run; name one of its models: {Path(source) / 'student'}")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(f"there is no model in {source}: it has no config.json")
    is_folder = Path(source).is_dir()
    here = {"local_files_only": is_folder or not hub_answers()}
    try:
        for weights in Path(source).glob("*.safetensors") if is_folder else ():
            verify(weights)
        config, _ = PreTrainedConfig.get_config_dict(source, **here)
        kind = config.get("model_type")
        if kind == PromptViTConfig.model_type:
            if is_folder and PromptViTConfig.from_dict(config).left_out:  # of which the weights may be on the Hub
                here["local_files_only"] = not hub_answers()
            model, loading = PromptViTForImageClassification.from_pretrained(source, output_loading_info=True, **here)
            processor = CLIPImageProcessor.from_pretrained(source, **here)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"the model {source} cannot be loaded: {_reason(error, is_folder, **here)}") from error
    if kind != PromptViTConfig.model_type:
        raise ValueError(f"{source} is a model of another kind ({kind}), not of this package")
    if loading["missing_keys"]:
        raise ValueError(f"the weights of {source} are incomplete: {', '.join(sorted(loading['missing_keys'])[:3])}")
    if not model.config.tasks_seen:
        raise ValueError(f"the model {source} has seen no class yet")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return SavedModel(model.to(device).eval(), processor)


def _reason(error: Exception, is_folder: bool, local_files_only: bool) -> str:
    if is_folder or not isinstance(error, (OSError, HFValidationError)):
        return str(error)
    from_hub = (
        "the Hub cannot be reached" if local_files_only else "the Hub did not give it: is it there, and yours to read?"
    )
    return f"there is no such folder, and {from_hub}"
