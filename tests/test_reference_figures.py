"""Our mathematics is the papers': figures of the authors' code, reproduced through the conversion of their state dict.

`reference_figures/README.md` says how the figures were made. CDL_HF_REFERENCE_FIGURES names another folder like it,
CDL_HF_DEVICE a device to compute them on, such as cuda.
"""

import functools
import json
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from reference_figures import weights
from torch import Tensor, nn

from cdl_hf.distillation import METHODS, TrainingObjective
from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification
from cdl_hf.models.conversion import convert

OTHER_FOLDER = os.environ.get("CDL_HF_REFERENCE_FIGURES")
DEVICE = os.environ.get("CDL_HF_DEVICE", "cpu")
FOLDER = Path(OTHER_FOLDER or Path(__file__).parent / "reference_figures")
FUSION = {  # our names of the parts of a ReviewKD layer
    "proj1": "linear_in",
    "norm1": "norm_in",
    "projz": "gate",
    "normz": "norm_gate",
    "norm2": "norm_fused",
    "proj2": "linear_out",
}
FAST = ("coda_prompt-kdp",)
# absolute; of a loss above 100 per 100 of it, which is 1e-6 relative
LOGITS_AND_LOSSES = 1e-4 if DEVICE == "cpu" else 1e-3
GRADIENT_NORMS = 1e-3  # relative


def cases() -> list:
    return [
        pytest.param(file, id=file.stem, marks=() if OTHER_FOLDER or file.stem in FAST else pytest.mark.slow)
        for file in sorted(FOLDER.glob("*.npz"))
    ]


@pytest.mark.parametrize("file", cases())
def test_reference_figures(file, capsys, record_property):
    torch.backends.cudnn.allow_tf32 = False  # as torch has it for matrix products
    with tempfile.TemporaryDirectory() as folder:  # not `tmp_path`, which is kept: these are models of real size
        case = Case(file, Path(folder))
        case.run()
    record_property("logits and losses", max(case.absolute.values()))
    record_property("gradient norms", max(case.relative.values(), default=0))
    with capsys.disabled():
        print(f"\n{file.stem}: largest deviation {max(case.absolute.values()):.1e} (logits, losses)", end="")
        print(f", {max(case.relative.values(), default=0):.1e} relative (gradient norms)", end=" ")
    assert case.figures.keys() == case.absolute.keys() | case.relative.keys()  # all were compared
    assert {name: value for name, value in case.absolute.items() if not value <= LOGITS_AND_LOSSES} == {}
    assert {name: value for name, value in case.relative.items() if not value <= GRADIENT_NORMS} == {}


class Case:
    """One case, run in the order in which its figures were recorded.

    Attributes:
        absolute: Largest absolute deviation of the logits and losses, by the figure's name; that of a loss above 100,
            where a step of float32 may be 0.0156, for each 100 of it.
        relative: Relative deviation of the gradient norms.
    """

    def __init__(self, file: Path, folder: Path):
        with np.load(file) as archive:
            self.figures = {name: archive[name] for name in archive.files}
        self.meta = json.loads(bytes(self.figures.pop("meta")))
        self.folder = folder
        self.absolute: dict[str, float] = {}
        self.relative: dict[str, float] = {}
        self.seeds = weights.seeds(self.meta["seed"])
        self.classes = self.meta["num_classes"] // self.meta["num_tasks"]
        first = self.meta["task_id"] * self.classes
        batch = weights.batch(self.meta["batch_size"], first, first + self.classes, self.meta["seed"])
        self.images, self.labels = (torch.from_numpy(array).to(DEVICE) for array in batch)

    def run(self) -> None:
        teacher, student = self.model("teacher"), self.model("student")
        method = self.method(student, teacher)
        with torch.no_grad():
            self.query = student.query_network.features(self.images)
        self.compare("query", self.query)
        self.compare("teacher_eval_logits", self.all_logits(teacher))
        self.compare("student_eval_logits", self.all_logits(student))
        if "teacher_loss" in self.figures:
            self.step("teacher", TrainingObjective(teacher))
            teacher.eval()
        if "student_loss" in self.figures:
            self.step("student", method)

    def step(self, role: str, method: TrainingObjective) -> None:
        """One training step with Adam."""
        model = method.model.train()
        optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-3)
        gradients = [name for name in self.figures if name.startswith(f"{role}_grad_norm/")]
        for name in gradients:  # the norm of APT's head is not trained, but its gradient is among the figures
            self.parameter(method, name.split("/")[1])[0].requires_grad_(True)
        outputs = []
        recording = model.register_forward_hook(lambda *call: outputs.append(call[-1].logits.detach().clone()))
        output = method(self.images, self.labels)
        recording.remove()
        output["loss"].backward()
        self.compare(f"{role}_loss", output["loss"])
        self.compare(f"{role}_soft_loss", output.get("soft_loss", torch.zeros(())))
        self.compare(f"{role}_feature_loss", output.get("feature_loss", torch.zeros(())))
        outputs[0][:, : model.config.current_classes.start] = -torch.inf
        self.compare(f"{role}_train_logits", outputs[0])
        for name in gradients:
            parameter, index = self.parameter(method, name.split("/")[1])
            norm, expected = parameter.grad[index].norm().item(), self.figures[name].item()
            self.relative[name] = abs(norm - expected) / max(expected, 1e-12) if norm != expected else 0.0
        optimizer.step()
        self.compare(f"{role}_eval_logits_after_step", self.all_logits(model))

    def compare(self, name: str, ours: Tensor) -> None:
        if name in self.figures:
            ours, theirs = ours.detach().cpu().numpy(), self.figures[name]
            assert ours.shape == theirs.shape, name
            differ = np.atleast_1d(ours != theirs)  # not where both are -inf
            deviation = np.abs(np.atleast_1d(ours)[differ] - np.atleast_1d(theirs)[differ]).max(initial=0)
            scale = max(abs(theirs.item()) / 100, 1.0) if name.endswith("_loss") else 1.0
            self.absolute[name] = float(deviation) / scale

    def all_logits(self, model: PromptViTForImageClassification) -> Tensor:
        """Predictions as if all classes had been seen: (B, C)."""
        all_classes = mock.patch.object(PromptViTConfig, "seen_classes", self.meta["num_classes"])
        with torch.no_grad(), all_classes:
            return model.eval()(self.images, query=self.query).logits

    def model(self, role: str) -> PromptViTForImageClassification:
        """Teacher or student as their .pth file, converted, saved and loaded."""
        backbones = {"feat": role, "s_feat": "student"}
        state = {}
        for part, owner in backbones.items():
            state |= {
                f"{part}.{name}": tensor
                for name, tensor in backbone(self.architecture(owner), self.seeds[f"{owner}_backbone"]).items()
            }
        for name, shape in self.shapes(role).items():
            seed = self.seeds["student_backbone" if name.startswith("feat.") else role]
            state[name] = torch.from_numpy(weights.tensor(name, tuple(shape), seed))
        file = self.folder / f"{role}.pth"
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, file)
        model, _ = convert(
            torch.load(file, weights_only=True),
            role=role,
            classes_per_task=[self.classes] * self.meta["num_tasks"],
            tasks_seen=self.meta["task_id"] + 1,
            teacher_state_dict=torch.load(self.folder / "teacher.pth", weights_only=True),
            ortho_weight=self.meta["prompt_param"][2] if self.meta["prompt_method"] == "coda_prompt" else 0.0,
            kd_alpha=self.meta["alpha"],
        )
        model.save_pretrained(self.folder / role)
        model, info = PromptViTForImageClassification.from_pretrained(self.folder / role, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        return model.to(DEVICE)

    def architecture(self, role: str) -> str:
        default = {"teacher": "vit_small_patch16_224", "student": "vit_tiny_patch16_224"}
        return self.meta.get(role, default[role])

    def shapes(self, role: str) -> dict[str, list[int]]:
        """Tensors besides the backbones. Of a case with `prompt_map` only those of the map are recorded."""
        shapes = dict(self.meta["shapes"].get(role, {}))
        if role == "student" and self.meta["distillation"] == "deit":
            shapes["feat.add_T_token"] = [1, 1, self.width(role)]
        if self.meta["distillation"] != "cdl_prompt":
            return shapes
        width, query_dim, classes = self.width(role), self.width("student"), self.meta["num_classes"]
        for head in ("last", "kd_last"):
            shapes |= {f"{head}.weight": [classes, width], f"{head}.bias": [classes]}
        method, (size, length, third) = self.meta["prompt_method"], self.meta["prompt_param"]
        first, last = {"l2p": (0, 4 if third > 0 else 0), "dualprompt": (2, 4), "coda_prompt": (0, 4)}[method]
        for block in range(first, last + 1):
            shapes |= {f"prompt.e_p_{block}": [size, length, width], f"prompt.e_k_{block}": [size, query_dim]}
            if method == "coda_prompt":
                shapes[f"prompt.e_a_{block}"] = [size, query_dim]
        if method == "dualprompt":
            shapes |= {f"prompt.g_p_{block}": [third, width] for block in range(first)}
        return shapes

    def width(self, role: str) -> int:
        return backbone(self.architecture(role), self.seeds[f"{role}_backbone"])["cls_token"].shape[-1]

    def method(
        self, student: PromptViTForImageClassification, teacher: PromptViTForImageClassification
    ) -> TrainingObjective:
        """The method, its training-only modules filled from the student's tensors."""
        name = self.meta["distillation"]
        # the authors' code has DKD's temperature fixed, whatever the case's
        temperature = None if name == "dkd" else self.meta["temperature"]
        method = METHODS[name](student, teacher, kd_alpha=self.meta["alpha"], temperature=temperature).to(DEVICE)
        part = {"fitnets": "project_t_s.", "reviewkd": "ReviewKD_layers."}.get(name)
        for theirs, shape in self.shapes("student").items():
            unused = theirs.startswith("ReviewKD_layers.abfs.0.norm2")  # the deepest block fuses nothing
            if part and theirs.startswith(part) and not unused:
                parameter, _ = self.parameter(method, theirs)
                array = weights.tensor(theirs, tuple(shape), self.seeds["student"])
                parameter.data.copy_(torch.from_numpy(array))
        return method

    def parameter(self, method: TrainingObjective, name: str) -> tuple[nn.Parameter, int | slice]:
        """Our parameter that holds the authors' tensor `name`, and the index of its block there."""
        model, whole = method.model, slice(None)
        part, _, leaf = name.partition(".")
        if part in ("last", "kd_last"):
            return (model.head if part == "last" else model.kd_head).get_parameter(leaf), whole
        if part in ("clf_norm", "kd_cls_norm"):
            return (model.head if part == "clf_norm" else model.kd_head).norm.get_parameter(leaf), whole
        if name == "prompt.prompt_tokens":
            return model.prompt_pool.prompts, whole
        if part == "project_t_s":
            return method.projection.get_parameter(leaf.removeprefix("proj.")), whole
        if part == "ReviewKD_layers":
            _, block, theirs, leaf = leaf.split(".")
            return method.fusions[int(block)].get_parameter(f"{FUSION[theirs]}.{leaf}"), whole
        if part == "prompt_map":
            block, kind = leaf.split(".")
            ours = {"key": "keys", "attention": "attention", "value": "values"}[kind]
            return model.kd_branch.get_parameter(ours), model.kd_branch.blocks.index(int(block))
        kind, block = re.fullmatch(r"(.+)_(\d+)", leaf).groups()
        if part == "prompt":
            pool, block = model.prompt_pool, int(block)
            if kind == "g_p":
                return pool.g_prompts, pool.g_blocks.index(block)
            ours = {"e_p": "prompts", "e_k": "keys", "e_a": "attention"}[kind]
            return pool.get_parameter(ours), pool.blocks.index(block)
        if part == "kd_prompt":
            branch = model.kd_branch
            return (branch.token, whole) if block == "0" else (branch.prompts, int(block) - 1)
        raise AssertionError(f"no parameter known for {name}")


@functools.cache
def backbone(architecture: str, seed: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = timm.create_model(architecture, num_classes=0).state_dict()
    return {
        name: torch.from_numpy(weights.tensor(f"feat.{name}", tuple(meta.shape), seed))
        for name, meta in shapes.items()
    }
