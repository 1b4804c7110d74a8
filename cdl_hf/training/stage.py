"""A stage: one model, or two on the same batches, trained on one task. The only loop over training batches."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Sampler, default_collate
from tqdm.auto import tqdm

from ..arguments.config import CDLConfig
from ..data import Batches, Task, TaskImages
from ..data.loaders import image_loader
from ..distillation import TrainingObjective
from ..runs.distributed import AsyncReduce, copy_to, prepare_module, progress_bar
from ..runs.output_cache import OutputCache, QueryCache
from ..utils import derive_seed


@dataclass(frozen=True)
class StageSettings:
    """Hyper-parameters of a stage.

    Args:
        name: Shown in the progress bar and in errors, such as `"task 3/10 teacher"`.
        num_train_epochs: Epochs E.
        batch_size: Images of one optimizer step over all processes and accumulation steps.
        learning_rate: Adam's, in the first epochs.
        num_workers: Loader processes.
        seed: Of the order of the images.
    """

    name: str
    num_train_epochs: int
    batch_size: int
    learning_rate: float
    num_workers: int
    seed: int


@dataclass
class StageState:
    """A stage between two optimizer steps, as a checkpoint holds it.

    Args:
        epoch, step: `step` optimizer steps of epoch `epoch` are done.
        images: Images of this epoch so far.
        sums: For each objective, sums over them of the loss, its terms and the accuracy.
        optimizers: For each objective, the state of Adam.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    optimizers: dict[str, dict] = field(default_factory=dict)


class StageError(RuntimeError):
    """Training cannot go on, in any process; the message says where and what to do.

    Args:
        state: The stage before the step that failed, whose weights are still in place; `None` where another objective
            has already taken its part of that step.
    """

    def __init__(self, message: str, state: StageState | None):
        super().__init__(message)
        self.state = state


class EpochSampler(Sampler[int]):
    """A seeded order of the images, new in each epoch, cut to whole batches; it can start after `skip` images.

    Incomplete last batches are dropped unless `every_image` is set, but images fewer than a batch still make one.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, every_image: bool = False):
        self.num_images, self.seed = num_images, seed
        self.length = num_images if every_image else num_images // batch_size * batch_size or num_images
        self.steps = math.ceil(self.length / batch_size)
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.num_images, generator=generator)[self.skip : self.length].tolist()


def order_seed(args: CDLConfig, task: Task) -> int:
    """Seed of the order of a task's images, the same in every stage."""
    return derive_seed(args.seed, "order", task.index)


def learning_rate_at(epoch: int, num_train_epochs: int, base: float) -> float:
    """The papers' cosine schedule, constant within an epoch: full in epochs 0 and 1, 1.6% of it in the last.

    Args:
        epoch: From 0.
        base: Learning rate of the first epoch.
    """
    return base * math.cos(99 * math.pi * max(epoch - 1, 0) / (200 * max(num_train_epochs - 1, 1)))


def create_optimizer(objective: TrainingObjective, learning_rate: float) -> torch.optim.Optimizer:
    """Adam, as in the papers, for the parameters that require gradients now."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    fused = True if all(p.is_cuda for p in trained) else None  # one kernel for all parameters
    return torch.optim.Adam(trained, lr=learning_rate, fused=fused)


class Stage:
    """The training of objectives on a task, each with a fresh Adam. Iterating runs it, epoch by epoch, step by step:

        for epoch in stage:
            for step in epoch:  # each objective has taken an optimizer step
                ...

    Several objectives take their steps in turn on every batch.

    Args:
        accelerator: With `split_batches`, so that `batch_size` counts all processes.
        objectives: Name -> objective. Its trainable parameters are those that require gradients now.
        images: The task's training images.
        settings: Its hyper-parameters.
        cached: Outputs of frozen networks that need not be computed.
        queries: Where to keep the queries that this stage computes.
        start: Where to continue a stage that was interrupted.

    Raises:
        StageError: While iterating: a loss is not finite; its step is not taken.
        FloatingPointError: At the end: weights are not finite after the last step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        objectives: Mapping[str, TrainingObjective],
        images: TaskImages,
        settings: StageSettings,
        *,
        cached: OutputCache | None = None,
        queries: QueryCache | None = None,
        start: StageState | None = None,
    ):
        self.accelerator, self.objectives, self.images, self.settings = accelerator, objectives, images, settings
        self.cached, self.queries = cached or OutputCache(), queries
        self.start = start or StageState()
        self.sampler, self.loader = training_loader(accelerator, images, settings)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.prepared: dict[str, Any] = {}
        self.current: Epoch | None = None

    def __iter__(self) -> Iterator["Epoch"]:
        settings, start = self.settings, self.start
        for name, objective in self.objectives.items():
            optimizer = create_optimizer(objective, settings.learning_rate)
            if name in start.optimizers:
                optimizer.load_state_dict(start.optimizers[name])
            self.prepared[name] = prepare_module(self.accelerator, objective.train())
            self.optimizers[name] = self.accelerator.prepare(optimizer)
        steps = self.sampler.steps
        with progress_bar(total=settings.num_train_epochs * steps, desc=settings.name, unit="step", position=1) as bar:
            bar.update(start.epoch * steps + start.step)
            for epoch in range(start.epoch, settings.num_train_epochs):
                self.current = Epoch(self, epoch, start if epoch == start.epoch else None, bar)
                yield self.current
        for name, objective in self.objectives.items():
            if not all(p.isfinite().all() for p in objective.parameters() if p.requires_grad):
                rate = f"at learning rate {settings.learning_rate:g}"
                raise FloatingPointError(f"the {name}'s weights are not finite after {settings.name}, {rate}")
        for module in self.prepared.values():
            self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)
        del self.loader  # ends its workers
        self.accelerator.free_memory()

    def state(self) -> StageState:
        """The stage after its last optimizer step; all processes must call it together."""
        assert self.current is not None  # training has begun
        return self.current.state()


class Epoch:
    """A pass over a stage's images. Iterating trains, and gives the number of steps done after each.

    Attributes:
        index: From 0.
        learning_rate: Adam's in this epoch.
        step: Optimizer steps done.
    """

    def __init__(self, stage: Stage, index: int, resumed: StageState | None, bar: tqdm):
        settings = stage.settings
        self.stage, self.index, self.bar, self.step = stage, index, bar, 0
        self.learning_rate = learning_rate_at(index, settings.num_train_epochs, settings.learning_rate)
        self.averages = _Averages(stage.accelerator, list(stage.objectives))
        self._began = time.perf_counter()
        if resumed is not None:
            self.step = resumed.step
            self.averages.resume(resumed)
        self._at_last_step = self.averages.copy()

    def __iter__(self) -> Iterator[int]:
        stage, accelerator = self.stage, self.stage.accelerator
        if self.step == stage.sampler.steps:  # resumed between its last step and its end
            return
        stage.sampler.skip = self.step * stage.settings.batch_size
        stage.loader.set_epoch(self.index)
        stage.images.set_epoch(self.index)
        for optimizer in stage.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
        for batch in Batches(stage.loader, stage.images):
            with accelerator.accumulate(*stage.prepared.values()):
                self._train(batch, batch.pop("index"))
            self.averages.images += len(batch["labels"])
            if not accelerator.sync_gradients:
                continue
            self.step += 1
            self._at_last_step = self.averages.copy()
            self.bar.update()
            if self.step % 10 == 0 or self.step == stage.sampler.steps:
                self._show()
            yield self.step

    def means(self) -> dict[str, dict[str, float]]:
        """For each objective the means over all images: loss, its terms, accuracy (%); and the epoch's seconds."""
        images, sums = self.averages.total()
        more = {"learning_rate": self.learning_rate, "seconds": time.perf_counter() - self._began}
        return {
            name: {"epoch": self.index, **{key: value / images for key, value in values.items()}, **more}
            for name, values in sums.items()
        }

    def state(self) -> StageState:
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.stage.optimizers.items()}
        return StageState(self.index, self.step, *self._at_last_step.total(), optimizers)

    def _train(self, batch: dict[str, Any], index: list[int]) -> None:
        """Gradients of a batch for each objective in turn, and its step where the batch is complete."""
        stage, accelerator = self.stage, self.stage.accelerator
        known = stage.cached.lookup(self.index, index)
        known = {name: copy_to(accelerator.device, values) for name, values in known.items()}
        for number, (name, objective) in enumerate(stage.prepared.items()):
            with accelerator.autocast():
                output = objective(**batch, **known)
            first = stage.objectives[name].model.config.current_classes.start
            self.averages.add(name, output, batch["labels"] - first)
            finite = self.averages.count_finite(name) if accelerator.sync_gradients else None
            accelerator.backward(output["loss"])
            if finite is not None and int(finite) < accelerator.num_processes:
                raise StageError(
                    f"the {name}'s loss is not finite in {stage.settings.name}, epoch {self.index + 1}, "
                    f"step {self.step + 1}, at learning rate {self.learning_rate:g}",
                    None if number else self.state(),
                )
            stage.optimizers[name].step()
            stage.optimizers[name].zero_grad()
            if stage.queries is not None and "query" in output:
                stage.queries.add(self.index, index, output["query"])

    def _show(self) -> None:
        if self.bar.disable:  # to read the averages is to wait for the device
            return
        shown = self.averages.local().values()
        self.bar.set_postfix(
            loss=", ".join(f"{values['loss']:.3f}" for values in shown),
            accuracy=", ".join(f"{values['accuracy']:.0f}%" for values in shown),
        )


def training_loader(
    accelerator: Accelerator, images: TaskImages, settings: StageSettings, every_image: bool = False
) -> tuple[EpochSampler, DataLoaderShard]:
    """Batches of a task's training images, the same in every stage, and the order in which they come.

    Args:
        every_image: Whether those that make no whole batch come too, at the end of an epoch.
    """
    batch_size = min(settings.batch_size, len(images))
    sampler = EpochSampler(len(images), batch_size, settings.seed, every_image)
    size = max(batch_size // accelerator.gradient_accumulation_steps, 1)
    loader = image_loader(
        accelerator,
        images,
        size,
        settings.num_workers,
        sampler=sampler,
        collate_fn=_collate,
        persistent_workers=settings.num_workers > 0 and settings.num_train_epochs > 1,
    )
    return sampler, loader


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """As torch does it, but the indices stay a list on the CPU: what is cached is found without asking the device."""
    index = [sample.pop("index") for sample in samples]
    return {**default_collate(samples), "index": index}


class _Averages:
    """Averages over the images of an epoch, in float64 on the CPU.

    Each batch's values wait on their device until they are asked for, so that no step waits for them.
    """

    def __init__(self, accelerator: Accelerator, names: list[str]):
        self.accelerator = accelerator
        self.images = 0
        self._sums: dict[str, dict[str, float]] = {name: {} for name in names}
        self._waiting: list[tuple[str, tuple[str, ...], Tensor]] = []
        self._finite: dict[str, Tensor] = {}

    def resume(self, state: StageState) -> None:
        if self.accelerator.is_main_process:  # the state holds the sums over all processes
            self.images = state.images
            self._sums.update({name: dict(sums) for name, sums in state.sums.items()})

    def add(self, name: str, output: dict[str, Tensor], labels: Tensor) -> None:
        """Adds a batch; the labels are columns of the output's logits."""
        values = {key: (value.detach() * len(labels)).float() for key, value in output.items() if not value.ndim}
        values["accuracy"] = (100 * (output["logits"].argmax(1) == labels).sum()).float()
        self._waiting.append((name, tuple(values), torch.stack(list(values.values()))))
        finite = torch.isfinite(values["loss"])
        self._finite[name] = self._finite[name] & finite if name in self._finite else finite

    def copy(self) -> "_Averages":
        other = _Averages(self.accelerator, [])
        other.images, other._sums = self.images, {name: dict(sums) for name, sums in self._sums.items()}
        other._waiting = list(self._waiting)
        return other

    def count_finite(self, name: str) -> AsyncReduce:
        """Processes whose losses have all been finite."""
        return AsyncReduce(self.accelerator, self._finite[name].long())

    def local(self) -> dict[str, dict[str, float]]:
        """This process's averages so far."""
        return {n: {key: value / self.images for key, value in sums.items()} for n, sums in self._settled().items()}

    def total(self) -> tuple[int, dict[str, dict[str, float]]]:
        """Images and sums over all processes."""
        found = gather_object([(self.images, self._settled())])
        sums = {
            name: {key: sum(theirs[name].get(key, 0.0) for _, theirs in found) for key in of_name}
            for name, of_name in self._sums.items()
        }
        return sum(images for images, _ in found), sums

    def _settled(self) -> dict[str, dict[str, float]]:
        """The sums with what has waited."""
        if self._waiting:
            values = iter(torch.cat([values for _, _, values in self._waiting]).tolist())  # waits for the device once
            for name, keys, _ in self._waiting:
                sums = self._sums[name]
                for key in keys:
                    sums[key] = sums.get(key, 0.0) + next(values)
            self._waiting = []
        return self._sums
