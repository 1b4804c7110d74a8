"""Dry run: what a run would do, and the memory and operations of its steps, found on fake tensors.

Fake tensors have shapes but no content: any model on any batch takes seconds and no memory.
"""

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from timm.models.vision_transformer import Block
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig, DistillationArguments, ModelArguments
from ..arguments.stream import StreamArguments
from ..data import TaskImages, TaskStream, train_transform
from ..data.labels import read_labels
from ..distillation import TrainingObjective
from ..models import PromptViTForImageClassification
from ..models.analytic import FeaturePredictor
from ..models.classifiers import RanPAC
from ..models.compute_copy import copied_weights
from ..runs.checkpointing import NUM_KEPT
from ..runs.task_checkpoints import TaskCheckpoints, describe_stream, drifts
from .build import build_models, build_stream
from .callbacks import duration
from .classifier_alignment import RANK
from .memory import check_division
from .online_evaluation import OnlinePoints
from .results import describe_models
from .stage import EpochSampler

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def describe_run(
    stream_args: StreamArguments,
    model_args: ModelArguments,
    distillation_args: DistillationArguments,
    args: CDLConfig,
    folder: Path,
    accelerator: Accelerator,
) -> str:
    """Stream, models, steps, memory and files of a run. Backbones have shapes but no weights: none are downloaded.

    Raises:
        ValueError: As [`build_stream`], [`build_models`], [`TaskCheckpoints.is_joint`] and [`check_division`].
    """
    stream = build_stream(stream_args)
    if args.student_run is not None:  # a given teacher is checked as it is built
        TaskCheckpoints(Path(args.student_run), "student").is_joint(describe_stream(stream))
    with torch.device("meta"):
        pair = build_models(stream, model_args, distillation_args, args, pretrained=False)
    objectives = {"teacher" if args.stages == "teacher" else "student": pair.objective}
    if pair.objective.teacher is not None:
        objectives = {"teacher": TrainingObjective(pair.objective.teacher), **objectives}
    trained_tasks = pair.objective.model.config.num_trained_tasks
    task_sizes = [len(task.train) for task in stream][:trained_tasks]
    check_division(objectives, task_sizes, args, accelerator.num_processes)
    runs = {"teacher": args.teacher_run, "student": args.student_run}
    trained = [role for role in objectives if runs[role] is None]
    stages: list[tuple[str, ...]] = [tuple(trained)] if args.schedule == "same_step" else [(role,) for role in trained]
    models = {role: objective.model for role, objective in objectives.items()}
    side = pair.image_processor.crop_size["height"]
    costs = _Costs.of(stream, objectives, stages, args, side, accelerator)
    return "\n".join(
        [
            str(stream),
            describe_models(models, pair.image_processor),
            _steps(stream, args, trained, trained_tasks),
            *_files(stream, objectives, folder, args),
            *_memory(costs, accelerator),
            _time(costs, stream, trained_tasks, args, pair.image_processor, objectives, accelerator),
        ]
    )


@dataclass
class _Costs:
    """What the steps of one process cost.

    Attributes:
        batch: Images of a training step at a time.
        eval_batch: Images of an evaluation step.
        stages: Roles trained together -> the cost of a step on `batch` images.
        evaluation: The cost of an evaluation step.
    """

    batch: int
    eval_batch: int
    stages: dict[tuple[str, ...], "Footprint"]
    evaluation: "Footprint"

    @classmethod
    def of(
        cls,
        stream: TaskStream,
        objectives: dict[str, TrainingObjective],
        stages: list[tuple[str, ...]],
        args: CDLConfig,
        side: int,
        accelerator: Accelerator,
    ) -> "_Costs":
        for task in stream:  # the last one takes the most
            for objective in objectives.values():
                if objective.model.config.num_tasks == len(stream):  # a joint teacher has seen all classes
                    objective.model.start_task(task.class_names)
        steps = FakeSteps(objectives, side, accelerator.device, accelerator.mixed_precision)
        processes = accelerator.num_processes
        batch = max(args.batch_size // args.gradient_accumulation_steps // processes, 1)
        eval_batch = max(args.eval_batch_size // processes, 1)
        evaluation = steps.evaluation(eval_batch)  # first, for it leaves what all models keep from the first task on
        return cls(batch, eval_batch, {roles: steps.training(roles, batch) for roles in stages}, evaluation)


def _steps(stream: TaskStream, args: CDLConfig, trained: list[str], trained_tasks: int) -> str:
    epoch = sum(EpochSampler(len(task.train), args.batch_size, 0).steps for task in stream[:trained_tasks])
    which = "each task" if trained_tasks == len(stream) else f"each of the first {trained_tasks} tasks"
    evaluated, online = _evaluated(stream, args)
    evaluations = f"{evaluated:,} test images in {len(stream)} evaluations"
    if online:
        evaluations += f", and {online:,} while training"
    if not trained:
        return f"steps: none, no model is trained; {evaluations}"
    return (
        f"steps: {args.num_train_epochs * epoch:,} of {args.batch_size} images for the "
        f"{' and for the '.join(trained)}, in {args.num_train_epochs} epochs of {which}; {evaluations}"
    )


def _evaluated(stream: TaskStream, args: CDLConfig) -> tuple[int, int]:
    """Test images in the evaluations after the tasks, and in those at the points of online evaluation."""
    views = [task.test if task.validation is None else task.validation for task in stream]
    evaluated = sum((len(stream) - i) * len(view) for i, view in enumerate(views))
    if args.eval_steps is None:
        return evaluated, 0
    labels = np.concatenate([stream.label_to_class_id[read_labels(view)] for view in views])
    return evaluated, OnlinePoints(stream, args).num_tested(labels)


def _files(stream: TaskStream, modules: dict[str, TrainingObjective], folder: Path, args: CDLConfig) -> list[str]:
    trained = sum(_bytes(p for p in module.parameters() if p.requires_grad) for module in modules.values())
    students = [module.model for module in modules.values()]
    computed = [module for model in students for module in model.computed]
    predicting = sum(_bytes(module.buffers()) for module in [*computed, *(each.prompt_pool for each in students)])
    states = predicting + sum(_bytes(p for p in model.parameters() if p.requires_grad) for model in students)
    models = predicting + sum(_bytes(model.parameters()) for model in students)
    statistics = sum(4 * module.num_statistics for module in computed)
    for_classifiers = sum(_for_classifier(stream, model, args) for model in students)
    # with Adam's two moments
    checkpoints = (3 * trained + predicting + statistics + for_classifiers) * NUM_KEPT
    return [
        f"would be written to {folder}: arguments, metrics, results.json, pictures; {' and '.join(modules)} "
        f"({_size(models)}); what they have learned after each task ({_size(len(stream) * states)}); {NUM_KEPT} "
        f"checkpoints (at most {_size(checkpoints)})"
    ]


def _for_classifier(stream: TaskStream, model: PromptViTForImageClassification, args: CDLConfig) -> int:
    """Bytes in a checkpoint of what aligned heads and drift compensation need, at most (see [`Learner`])."""
    num_heads, values = 1 if model.kd_head is None else 2, 0
    if args.classifier_alignment:  # mean, factors and rest of each class
        values += sum(model.config.classes_per_task) * num_heads * ((1 + RANK) * model.network.embed_dim + 1)
    if args.drift_compensation and drifts(model.config):  # features of a task's images before the task
        most = max(len(task.train) for task in stream)
        values += most * num_heads * model.network.width(model.readout)
    return 4 * values


def _memory(costs: _Costs, accelerator: Accelerator) -> list[str]:
    peaks = {f"training the {' and the '.join(roles)}": cost.peak_bytes for roles, cost in costs.stages.items()}
    peaks["evaluating"] = costs.evaluation.peak_bytes
    resident = psutil.Process().memory_info().rss
    return [
        f"peak memory on {accelerator.device}: " + ", ".join(f"{name} {_size(peak)}" for name, peak in peaks.items()),
        f"  for all tensors of one process, with {costs.batch} images at a time; add {_size(resident)} for the "
        "process itself, and what the allocator wastes (on a CPU up to half of it)",
    ]


def _time(
    costs: _Costs,
    stream: TaskStream,
    trained_tasks: int,
    args: CDLConfig,
    image_processor: CLIPImageProcessor,
    objectives: dict[str, TrainingObjective],
    accelerator: Accelerator,
) -> str:
    """The time to expect on this machine, from the operations of the steps and the speed of one block on it."""
    low, high = args.crop_scale
    transform = train_transform(image_processor, (low, high), horizontal_flip=args.horizontal_flip)
    images = TaskImages(stream[0].train, stream.label_to_class_id, transform, seed=args.seed)
    images = images.for_device(accelerator.device)
    some = list(range(min(costs.batch, len(images))))
    images.__getitems__(some)  # opens the files
    began = time.perf_counter()
    images.__getitems__(some)
    loading = (time.perf_counter() - began) / len(some) / max(args.dataloader_num_workers, 1)  # seconds an image
    speed = {role: _flops_per_second(each.model, costs.batch, accelerator) for role, each in objectives.items()}
    trained = args.num_train_epochs * sum(
        EpochSampler(len(task.train), args.batch_size, 0).steps * args.batch_size for task in stream[:trained_tasks]
    )
    fitted, regressions = _fitting(stream, args, objectives)
    evaluated = sum(_evaluated(stream, args)) + fitted
    slowest = min(speed.values())
    seconds = evaluated * (costs.evaluation.flops / costs.eval_batch / slowest + loading)
    for roles, cost in costs.stages.items():
        seconds += trained * (cost.flops / costs.batch / min(speed[role] for role in roles) + loading)
    seconds += accelerator.num_processes * regressions / slowest  # every process solves them
    return f"time: about {duration(seconds / accelerator.num_processes)} on this machine, give or take a half"


def _fitting(stream: TaskStream, args: CDLConfig, objectives: dict[str, TrainingObjective]) -> tuple[int, int]:
    """Images that are read for classifiers after the tasks, and operations of the regressions of these."""
    models = [each.model for each in objectives.values()]
    passes = int(args.classifier_alignment or any(model.classifier is not None for model in models))
    passes += any(model.analytic is not None for model in models) and args.horizontal_flip > 0
    fitted = passes * (1 + args.drift_compensation) * sum(len(task.train) for task in stream)
    computed = [module for model in models for module in model.computed]
    widths = [module.weight.shape[1] for module in computed if isinstance(module, (RanPAC, FeaturePredictor))]
    return fitted, len(stream) * sum(10 * width**3 for width in widths)  # eigenvectors, and a solution


def _flops_per_second(model: PromptViTForImageClassification, batch_size: int, accelerator: Accelerator) -> float:
    """Operations per second of a block of the model's shape, forward and backward with frozen weights.

    A network without blocks counts as one of its width, with 7 x 7 patches.
    """
    device, network = accelerator.device, model.network
    num_heads, patches = 1, 49
    if network.blocks:
        num_heads, patches = network.module.blocks[0].attn.num_heads, network.module.patch_embed.num_patches
    block = Block(network.embed_dim, num_heads, qkv_bias=True).to(device)
    block.requires_grad_(False)
    count = batch_size if device.type == "cuda" else min(batch_size, 16)
    tokens = torch.randn(count, patches + 1, network.embed_dim, device=device)
    tokens.requires_grad_()

    def step() -> None:
        with accelerator.autocast():
            loss = block(tokens).float().sum()
        loss.backward()
        float(loss.detach())  # waits for the device

    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return counter.get_total_flops() / statistics.median(times)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


@dataclass
class Footprint:
    """Cost of a step on one process.

    Attributes:
        peak_bytes: Tensors alive at once at the most, all weights among them.
        flops: Floating-point operations of the matrix products, a product and its sum counted as two.
    """

    peak_bytes: int = 0
    flops: int = 0


class FakeSteps:
    """The steps of a run on fake tensors.

    Args:
        modules: Role -> what is trained, on the meta device and with a task begun. They cannot be used otherwise
            afterwards.
        side: Of the images, in pixels.
        device: What the steps would run on.
        precision: Accelerate's: `"no"`, `"bf16"` or `"fp16"`.
    """

    def __init__(self, modules: dict[str, TrainingObjective], side: int, device: torch.device, precision: str = "no"):
        self.modules, self.side, self.device, self.precision = modules, side, device, precision
        self.models = [module.model for module in reversed(modules.values())]  # the student's query serves both
        self.shares_query = [self.models[0].shares_query_with(model) for model in self.models]
        self.fake_mode = FakeTensorMode()
        with self.fake_mode:
            for module in modules.values():
                module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))

    def training(self, roles: Iterable[str], batch_size: int) -> Footprint:
        """Of a step of each of the roles in turn, on the same `batch_size` images."""
        modules = [self.modules[role].train() for role in roles]
        optimizers = [torch.optim.Adam(p for p in module.parameters() if p.requires_grad) for module in modules]
        with self._counted() as footprint:
            for _ in range(2):  # in the first one the optimizer's moments are not there yet
                pixel_values = self._images(batch_size)
                for module, optimizer in zip(modules, optimizers, strict=True):
                    first = module.model.config.current_classes.start
                    labels = torch.full((batch_size,), first, device=self.device)
                    with self._autocast():
                        loss = module(pixel_values=pixel_values, labels=labels)["loss"]
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        for module in modules:
            module.eval()
        footprint.flops //= 2
        return footprint

    def evaluation(self, batch_size: int) -> Footprint:
        """Of all models on `batch_size` images, as [`Evaluator`] does it."""
        with self._counted() as footprint, torch.no_grad(), self._autocast():
            pixel_values = self._images(batch_size)
            query = self.models[0].query(pixel_values)
            for model, shares in zip(self.models, self.shares_query, strict=True):
                model.eval()(pixel_values, query=query if shares else None)
        return footprint

    @contextmanager
    def _counted(self) -> Iterator[Footprint]:
        """Costs of what is done in it; the footprint is filled in at its end."""
        footprint = Footprint()
        memory, flops = _LiveMemory(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        for module in self.modules.values():
            for tensor in (*module.parameters(), *module.buffers(), *copied_weights(module)):
                memory.add(tensor)
        with self.fake_mode, memory, flops:
            yield footprint
        footprint.peak_bytes, footprint.flops = memory.peak, flops.get_total_flops()

    def _images(self, batch_size: int) -> Tensor:
        return torch.empty(batch_size, 3, self.side, self.side, device=self.device)

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


class _LiveMemory(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self.now -= size


def _attention(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop(query_shape, key_shape, value_shape)


def _attention_backward(grad_shape, query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    # four products for the forward pass's two; that the scores are computed again is not counted, for it is a choice
    return 2 * sdpa_flop(query_shape, key_shape, value_shape)


# Torch's counter does not know the fused attention of CPUs.
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
