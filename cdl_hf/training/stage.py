"""One stage: the training of one module on one task, or of two in turn. The only loop over training batches."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, tqdm
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler

from ..data import Batches, TaskImages
from .distributed import AsyncReduce, prepare_module


@dataclass(frozen=True)
class StageSettings:
    """What a stage needs besides its module and images.

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
    """Where a stage stands between two optimizer steps.

    Args:
        epoch, step: `step` optimizer steps of epoch `epoch` are done.
        images: Images of this epoch so far.
        sums: For each module, sums over them of the loss, its parts and the accuracy.
        optimizers: For each module, the state of Adam.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    optimizers: dict[str, dict] = field(default_factory=dict)


class StageError(RuntimeError):
    """Training cannot go on, in any process; the message says where and what to do.

    Args:
        state: The stage before the step that failed; its modules are as they were then.
    """

    def __init__(self, message: str, state: StageState):
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


def learning_rate_at(epoch: int, num_train_epochs: int, base: float) -> float:
    """The papers' cosine schedule, constant within an epoch: full in epochs 0 and 1, 1.6% of it in the last.

    Args:
        epoch: From 0.
        base: Learning rate of the first epoch.
    """
    return base * math.cos(99 * math.pi * max(epoch - 1, 0) / (200 * max(num_train_epochs - 1, 1)))


def run_stage(
    accelerator: Accelerator,
    modules: dict[str, nn.Module],
    images: TaskImages,
    settings: StageSettings,
    *,
    start: StageState | None = None,
    on_answer: Callable[[int, Tensor, dict[str, Tensor]], None] | None = None,
    on_step: Callable[[Callable[[], StageState]], None] | None = None,
    on_epoch: Callable[[str, dict[str, float]], None] | None = None,
) -> None:
    """Trains modules on `images`, each with a fresh Adam; several take their steps in turn on every batch.

    Args:
        accelerator: With `split_batches`, so that `batch_size` counts all processes.
        modules: Name -> module, called as `module(pixel_values=, labels=)` and with what else the samples carry; it
            answers with `loss`, `logits` over the task's classes and named parts of the loss. Its trainable parameters
            are those with gradients now.
        images: The task's training images.
        settings: See [`StageSettings`].
        start: Where to go on in a resumed stage.
        on_answer: Called on every process with the epoch, the indices of its images and what a module has answered.
        on_step: Called on every process after each optimizer step, with a function that takes the stage's state.
        on_epoch: Called after each epoch with each module's name and its averages over all images: loss, parts,
            accuracy (%), and the epoch's learning rate and seconds.

    Raises:
        StageError: The loss is not finite; the step is not taken.
        FloatingPointError: The weights are not finite after the last step.
    """
    start = start or StageState()
    sampler, loader = training_loader(accelerator, images, settings)
    prepared, optimizers = {}, {}
    for name, module in modules.items():
        optimizer = torch.optim.Adam((p for p in module.parameters() if p.requires_grad), lr=settings.learning_rate)
        if name in start.optimizers:
            optimizer.load_state_dict(start.optimizers[name])
        prepared[name], optimizers[name] = prepare_module(accelerator, module.train()), accelerator.prepare(optimizer)
    bar = tqdm(total=settings.num_train_epochs * sampler.steps, desc=settings.name, unit="step", leave=False)
    bar.update(start.epoch * sampler.steps + start.step)

    for epoch in range(start.epoch, settings.num_train_epochs):
        began, averages, step = time.perf_counter(), _Averages(accelerator, list(modules)), 0
        if epoch == start.epoch:
            step = start.step
            averages.resume(start)
        sampler.skip = step * settings.batch_size
        loader.set_epoch(epoch)
        images.set_epoch(epoch)
        rate = learning_rate_at(epoch, settings.num_train_epochs, settings.learning_rate)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        done = averages.copy()  # as of the last optimizer step
        for batch in Batches(loader, images) if step < sampler.steps else ():
            index = batch.pop("index")
            with accelerator.accumulate(*prepared.values()):
                taken: list[_Step] = []
                for name, module in prepared.items():
                    with accelerator.autocast():
                        output = module(**batch)
                    averages.add(name, output, batch["labels"] - modules[name].model.config.current_classes.start)
                    finite = averages.count_finite(name) if accelerator.sync_gradients else None
                    accelerator.backward(output["loss"])
                    if finite is not None and int(finite) < accelerator.num_processes:
                        for earlier in taken:
                            earlier.take_back()
                        raise StageError(
                            f"the {name}'s loss is not finite in {settings.name}, epoch {epoch + 1}, step {step + 1}, "
                            f"at learning rate {rate:g}",
                            _take_state(epoch, step, done, optimizers),
                        )
                    if accelerator.sync_gradients and len(taken) + 1 < len(modules):
                        taken.append(_Step(optimizers[name]))
                    optimizers[name].step()
                    optimizers[name].zero_grad()
                    if on_answer is not None:
                        on_answer(epoch, index, output)
            averages.images += len(batch["labels"])
            if not accelerator.sync_gradients:
                continue
            step += 1
            bar.update()
            done = averages.copy()
            if step % 10 == 0 or step == sampler.steps:
                _show(bar, averages)
            if on_step is not None:
                on_step(partial(_take_state, epoch, step, averages, optimizers))
        if on_epoch is not None:
            seen, sums = averages.total()
            seconds = time.perf_counter() - began
            for name, values in sums.items():
                means = {key: value / seen for key, value in values.items()}
                on_epoch(name, {"epoch": epoch, **means, "learning_rate": rate, "seconds": seconds})
    bar.close()
    for name, module in modules.items():
        if not all(p.isfinite().all() for p in module.parameters() if p.requires_grad):
            rate = f"at learning rate {settings.learning_rate:g}"
            raise FloatingPointError(f"the {name}'s weights are not finite after {settings.name}, {rate}")
    for module in prepared.values():
        accelerator.unwrap_model(module, keep_fp32_wrapper=False)
    accelerator.free_memory()


def training_loader(
    accelerator: Accelerator, images: TaskImages, settings: StageSettings, every_image: bool = False
) -> tuple[EpochSampler, DataLoader]:
    """Batches of a task's training images, the same in every stage, and the order in which they come.

    Args:
        every_image: Whether those that make no whole batch come too, at the end of an epoch.
    """
    batch_size = min(settings.batch_size, len(images))
    sampler = EpochSampler(len(images), batch_size, settings.seed, every_image)
    size = max(batch_size // accelerator.gradient_accumulation_steps, 1)
    loader = DataLoader(images, batch_size=size, sampler=sampler, num_workers=settings.num_workers)
    return sampler, accelerator.prepare_data_loader(loader)


def _take_state(epoch: int, step: int, averages: "_Averages", optimizers: dict) -> StageState:
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    return StageState(epoch, step, *averages.total(), states)


class _Step:
    """What a step is about to change, for where another module's step on the same batch cannot be taken."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer, self.state = optimizer, copy.deepcopy(optimizer.state_dict())
        self.values = [parameter.detach().clone() for parameter in self._parameters()]

    @torch.no_grad()
    def take_back(self) -> None:
        for parameter, value in zip(self._parameters(), self.values, strict=True):
            parameter.copy_(value)
        self.optimizer.load_state_dict(self.state)

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])


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


def _show(bar: tqdm, averages: _Averages) -> None:
    shown = averages.local().values()
    bar.set_postfix(
        loss=", ".join(f"{values['loss']:.3f}" for values in shown),
        accuracy=", ".join(f"{values['accuracy']:.0f}%" for values in shown),
    )
