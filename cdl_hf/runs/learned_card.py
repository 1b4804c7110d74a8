"""The model card of a model that has learned or forgotten classes after its run, from its record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..catalogue import CONTINUAL_DISTILLATION
from ..escaping import markdown_name, markdown_text, portable
from ..utils import write_text
from .model_card import NAMES_SHOWN, is_on_the_hub, license_id, usage

TEMPLATE = Path(__file__).parent / "learned_card_template.md"


@dataclass(frozen=True, kw_only=True)
class LearnedCardContent:
    """The content of a card.

    Args:
        role: Of the model: teacher or student.
        record: The content of `learned.json`.
        class_names: By class id, all that the model knows now.
        backbone: As the user named it.
        versions: Package -> version.
        weights_license: As in [`ModelCardContent`].
        base_model: As in [`ModelCardContent`].
        is_drawings: As in [`ModelCardContent`].
    """

    role: str
    record: Mapping[str, Any]
    class_names: Sequence[str]
    backbone: str
    versions: Mapping[str, str | None]
    weights_license: str | None = None
    base_model: Sequence[str] = field(default_factory=tuple)
    is_drawings: bool = False


def write_learned_card(folder: Path, content: LearnedCardContent) -> None:
    """Writes `README.md` into the folder of a saved model."""
    record = content.record
    base = " ".join(portable(record["model"]).split())
    name = base if base.endswith(f"-{content.role}") else f"{base}-{content.role}"
    card = ModelCard.from_template(
        ModelCardData(
            license=license_id(content.weights_license),
            library_name="transformers",  # the code of the model is in the repository
            pipeline_tag="image-classification",
            tags=["continual-learning", "class-incremental-learning", "vit"],
            base_model=[name for name in content.base_model if is_on_the_hub(name)] or None,
        ),
        template_path=str(TEMPLATE),
        content=content,
        model_name=markdown_name(name),
        base=base.replace("`", ""),
        backbone=markdown_name(portable(content.backbone)),
        dataset=markdown_name(record["dataset"]),
        history=[_row(event, content.role) for event in record["learned"]],
        num_classes=len(content.class_names),
        class_names=_listed(content.class_names),
        usage=usage(content.role, content.is_drawings),
        has_statistics=(folder / "statistics.safetensors").is_file(),
        versions=content.versions,
        weights_license=markdown_text(str(content.weights_license or "")),
        citation=CONTINUAL_DISTILLATION.bibtex,
    )
    write_text(folder / "README.md", str(card))


def _row(event: Mapping[str, Any], role: str) -> tuple[str, str, str]:
    """What was learned or forgotten, from how many images, and how many other images of it were recognized."""
    parts = [
        f"{verb} {_listed(event[name])}"
        for name, verb in (
            ("new_classes", "learned"),
            ("known_classes", "more images of"),
            ("forgotten_classes", "forgot"),
        )
        if event.get(name)
    ]
    right, total = event.get("correct", {}).get(role, (0, 0))
    images = f"{event['images']:,}" if event.get("images") else ""
    return "; ".join(parts), images, f"{right} of {total}" if total else ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(markdown_text(name) for name in names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
