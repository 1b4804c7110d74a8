"""Classes that a visitor teaches the models of a run, by a few images each."""

import copy
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..hub.saved_models import SavedModel
from ..models import PromptViTForImageClassification
from ..models.classifiers import Classifier, RanPAC
from ..models.growth import names_of
from ..models.modeling_prompt_vit import frozen_networks

MAX_NAME = 40  # characters of a class's name
MAX_CLASSES, MAX_IMAGES = 20, 200  # that a visitor may add
MAX_ROWS = 500  # that the images of a class count for


def why_not(saved: Mapping[str, SavedModel]) -> str:
    """Why these models cannot learn a class from a few images, in a sentence; empty if they can."""
    heads = {each.model.config.head for each in saved.values()}
    if "linear" in heads:
        return (
            "The heads of this run are trained, and one class alone cannot be trained. A run with --classifier ncm, "
            "or with --classifier ranpac --save_statistics, learns classes here."
        )
    if "teacher" not in saved and saved["student"].model.analytic is not None:
        return "This student learns from its teacher, which is not in the folder of the run."
    return ""


class Taught:
    """Copies of a run's models, after its last task, that have learned classes of a visitor.

    The frozen transformers are shared with the run's models, and nothing is written. For RanPAC, the few images of a
    class count as often as those of an average class of the run: otherwise the regression would hardly see them.

    Args:
        saved: The run's models by role, with what they need to learn further classes.

    Attributes:
        images: The images of each class, (1, 3, H, W), by its name.
        seconds: That learning them took.
    """

    def __init__(self, saved: Mapping[str, SavedModel]):
        self._saved = saved
        self.models = {role: each.model for role, each in saved.items()}
        self.images: dict[str, list[Tensor]] = {}
        self.seconds = 0.0

    @property
    def class_names(self) -> list[str]:
        """Names of all classes, those of the run first."""
        return names_of(next(iter(self.models.values())).config)

    @property
    def added_bytes(self) -> int:
        """By how much the models have grown."""
        return _bytes(self.models.values()) - _bytes(each.model for each in self._saved.values())

    def learn(self, name: str, pixel_values: Tensor) -> None:
        """Adds an image to a class of the visitor's, or of the run's.

        Args:
            name: Of the class.
            pixel_values: (1, 3, H, W), normalized.

        Raises:
            ValueError: The name is empty or too long, or there are too many classes or images.
        """
        name = " ".join(name.split())
        if not name or len(name) > MAX_NAME:
            raise ValueError(f"Give the class a name of at most {MAX_NAME} characters.")
        if name not in self.images and len(self.images) >= MAX_CLASSES:
            raise ValueError(f"The page learns at most {MAX_CLASSES} classes; `cdl-hf learn` has no limit.")
        if sum(map(len, self.images.values())) >= MAX_IMAGES:
            raise ValueError(f"The page learns at most {MAX_IMAGES} images; `cdl-hf learn` has no limit.")
        began = time.perf_counter()
        images = {**self.images, name: [*self.images.get(name, []), pixel_values]}
        models = {role: copy_of(each.model) for role, each in self._saved.items()}
        for model in models.values():
            new = [known for known in images if known not in names_of(model.config)]
            if new:
                model.add_classes(new)
            _fit(model, models.get("teacher"), images, set(new))
        self.images, self.models, self.seconds = images, models, time.perf_counter() - began

    @torch.inference_mode()
    def logits(self, role: str, pixel_values: Tensor) -> Tensor:
        """(1, C) of all classes, in float32."""
        model = self.models[role]
        return model(pixel_values.to(model.device)).logits.float()


def _fit(
    model: PromptViTForImageClassification,
    teacher: PromptViTForImageClassification | None,
    images: Mapping[str, list[Tensor]],
    new: set[str],
) -> None:
    pixel_values = torch.cat([image for of_class in images.values() for image in of_class]).to(model.device)
    names = names_of(model.config)
    labels = torch.tensor([names.index(name) for name, of_class in images.items() for _ in of_class])
    labels = labels.to(model.device)
    counts = torch.tensor([len(of_class) if name in new else 0 for name, of_class in images.items() for _ in of_class])
    features = model.head_features(pixel_values)
    own = model.network.select(features, model.readout_of_classifier, model.readout)
    num_known = len(names) - len(new)
    for i, classifier in enumerate((model.classifier, model.kd_classifier)):
        if classifier is not None:
            _add(classifier, own[:, i], labels, counts, num_known)
    if model.analytic is not None and teacher is not None:
        _add(model.analytic.classifier, teacher.head_features(pixel_values)[:, 0], labels, counts, num_known)


def _add(classifier: Classifier, features: Tensor, labels: Tensor, counts: Tensor, num_known: int) -> None:
    """Adds images, those of a new class as often as makes it as large as the known ones.

    Args:
        counts: (n,), number of images of the class of each; 0 where it is known.
    """
    repeats = torch.ones_like(counts)
    if isinstance(classifier, RanPAC):
        average = min(classifier.images_a_class(features, num_known), MAX_ROWS)
        repeats = torch.where(counts > 0, (average / counts.clamp_min(1)).round().long().clamp_min(1), 1)
    repeats = repeats.to(features.device)
    classifier.add(features.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats))


def _bytes(models: Iterable[PromptViTForImageClassification]) -> int:
    return sum(tensor.nbytes for model in models for tensor in model.state_dict().values())


def copy_of(model: PromptViTForImageClassification) -> PromptViTForImageClassification:
    """A copy that shares what learning a class does not change: the transformers and the random projections."""
    fixed: list[Any] = [network for _, network in frozen_networks(model)]
    fixed += [part.projection for part in model.modules() if isinstance(part, RanPAC)]
    fixed += [] if model.analytic is None else [model.analytic.predictor]
    shared = {id(part): part for part in fixed}
    return copy.deepcopy(model, shared).eval()
