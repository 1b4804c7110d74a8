"""Models that learn or forget classes after their run: how they are loaded, recorded and saved."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig, DistillationArguments
from ..data import dataset_spec
from ..escaping import portable, portable_arguments
from ..models import PromptViTForImageClassification
from ..models.backbones import pretrained_cfg
from ..models.growth import names_of
from ..training.build import backbone_source
from ..training.results import save_model
from ..utils import remove, unfinished, versions, write_json
from .saved_models import ROLES, file_beside, load_run, load_saved_model, trained_on

RECORD = "learned.json"  # what the models of a folder have learned and forgotten since their run


@dataclass
class LearnedModels:
    """The teacher and the student of a run, or one model.

    Args:
        source: The folder or Hub name that they were loaded from.
        models: By role.
        image_processor: Serves all of them.
        record: What is recorded of the run or of models that have learned before; `None` of any other model.
        is_pair: Whether each model has a folder of its own.
        dataset: Name of the data set of their run; empty if it is not known.
    """

    source: str
    models: dict[str, PromptViTForImageClassification]
    image_processor: CLIPImageProcessor
    record: dict[str, Any] | None
    is_pair: bool
    dataset: str

    @classmethod
    def load(cls, source: str) -> "LearnedModels":
        """The models of a run, of a folder that [`save`] has written, or a saved model, with their statistics.

        Raises:
            ValueError: There is no model, or it, its statistics or its record is missing or damaged.
        """
        record = read_record(source)
        is_pair = any((Path(source) / role / "config.json").is_file() for role in ROLES)
        if is_pair:
            saved = load_run(source, statistics=True)
        else:
            role = (record or {}).get("role") or ("teacher" if Path(source).name.endswith("teacher") else "student")
            saved = {role: load_saved_model(source, statistics=True)}
        processor = next(iter(saved.values())).image_processor
        dataset = str((record or {}).get("dataset") or portable(trained_on(source)))
        return cls(source, {role: each.model for role, each in saved.items()}, processor, record, is_pair, dataset)

    @property
    def has_learned(self) -> bool:
        """Whether they have learned or forgotten classes since their run."""
        return bool((self.record or {}).get("learned"))

    def save(
        self,
        output: Path,
        accelerator: Accelerator,
        event: Mapping[str, Any],
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the models with statistics, cards and record to a new folder, whole or not at all.

        All processes call it together.

        Args:
            event: What they have learned or forgotten, for the record.
            arguments: How they learned; by default, what the record says.
        """
        output = output.resolve()
        place = unfinished(output)
        if accelerator.is_main_process:
            remove(place)  # of a process that was killed
        accelerator.wait_for_everyone()
        try:
            self._write(place, accelerator, event, arguments)
            if accelerator.is_main_process:
                place.rename(output)
        except BaseException:  # a signal too: nothing half written stays
            if accelerator.is_main_process:
                shutil.rmtree(place, ignore_errors=True)
            raise

    def _write(
        self, place: Path, accelerator: Accelerator, event: Mapping[str, Any], arguments: Mapping[str, Any] | None
    ) -> None:
        folders = {role: place / role if self.is_pair else place for role in self.models}
        for role, model in self.models.items():
            save_model(accelerator, model, self.image_processor, folders[role], statistics=True)
        if accelerator.is_main_process:
            record = {
                "model": self._name(),
                "dataset": self.dataset,
                "arguments": self._recorded_arguments() if arguments is None else portable_arguments(dict(arguments)),
                "learned": [*(self.record or {}).get("learned", []), dict(event)],
            }
            for role, folder in folders.items():
                write_json(folder / RECORD, {**record, "role": role})
                self._write_card(folder, role, record)
            if self.is_pair:
                write_json(place / RECORD, record)

    def _name(self) -> str:
        """Name of the run or model that has learned or forgotten, also if it does so again."""
        source = Path(self.source).resolve()
        name = source.parent.name if source.name in ROLES else source.name
        return (self.record or {}).get("model") or name

    def _recorded_arguments(self) -> dict[str, Any]:
        if self.record is None:
            return {**asdict(DistillationArguments()), **asdict(CDLConfig())}
        return portable_arguments(self.record["arguments"])

    def _write_card(self, folder: Path, role: str, record: Mapping[str, Any]) -> None:
        from ..runs.learned_card import LearnedCardContent, write_learned_card  # its templates take a while to import

        model = self.models[role]
        backbones = [model.backbone, *([] if model.query_backbone is None else [model.query_backbone])]
        content = LearnedCardContent(
            role=role,
            record=record,
            class_names=names_of(model.config),
            backbone=backbone_source(model),
            versions=versions(),
            weights_license=pretrained_cfg(model.backbone).get("license"),
            base_model=[name for each in backbones if (name := pretrained_cfg(each).get("hf_hub_id"))],
            is_drawings=dataset_spec(self.dataset).is_drawings if self.dataset else False,
        )
        write_learned_card(folder, content)


def check_new_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: The folder exists and is not empty, or it is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir {folder} is not empty: choose a new folder")


def read_record(source: str) -> dict[str, Any] | None:
    """What is recorded of a run, a model of one, or models that have learned before; `None` of any other model.

    It holds the `arguments` of the run, and of models that have learned `model`, `dataset`, and what they `learned`.

    Raises:
        ValueError: It is damaged.
    """
    file = _record_file(source)
    if file is None:
        return None
    try:
        found = (yaml.safe_load if file.suffix == ".yaml" else json.loads)(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    record = found if file.name == RECORD else {"arguments": found}
    if file.name == "results.json":
        record = {"arguments": found.get("args") if isinstance(found, dict) else None}
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        raise ValueError(f"{file} is damaged: it holds no arguments")
    texts = [record.get(name, "") for name in ("model", "dataset")]
    if not all(isinstance(text, str) for text in texts) or record.get("role") not in (None, *ROLES):
        raise ValueError(f"{file} is damaged: model, data set or role is not what `cdl-hf` writes")
    events = record.get("learned", [])
    if not isinstance(events, list) or not all(map(_is_event, events)):
        raise ValueError(f"{file} is damaged: what was learned or forgotten is not what `cdl-hf` writes")
    return record


def _record_file(source: str) -> Path | None:
    """The file with the record; of a model of a run on the Hub, its results."""
    folder = Path(source)
    if not folder.is_dir():
        return file_beside(source, RECORD) or file_beside(source, "results.json")
    folders = [folder, folder.parent] if folder.name in ROLES else [folder]
    files = [each / name for each in folders for name in (RECORD, "args.yaml")]
    return next(filter(Path.is_file, files), None)


def _is_event(event: Any) -> bool:
    """Whether an entry of a record has the types that a card needs; the record may come from someone else."""
    if not isinstance(event, dict) or not isinstance(event.get("correct", {}), dict):
        return False
    names = [event.get(kind, []) for kind in ("new_classes", "known_classes", "forgotten_classes")]
    counts = event.get("correct", {}).values()
    return (
        all(isinstance(some, list) and all(isinstance(name, str) for name in some) for some in names)
        and isinstance(event.get("images", 0), int)
        and all(isinstance(pair, list) and [type(count) for count in pair] == [int, int] for pair in counts)
    )
