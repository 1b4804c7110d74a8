"""One stage: the training of one module on one task. The only loop over training batches."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from ..data import TaskImages


class StageError(RuntimeError):
    """Training cannot go on; the message says where and what to do."""


@dataclass(frozen=True)
class StageSettings:
    """What a stage needs besides its module and images.

    Args:
        name: Shown in the progress bar and in errors, such as `"task 3/10 teacher"`.
        num_epochs: Epochs E.
        batch_size: Images of one optimizer step over all processes and accumulation steps.
        learning_rate: Adam's, in the first epochs.
        num_workers: Loader processes.
        seed: Of the order of the images.
    """

    name: str
    num_epochs: int
    batch_size: int
    learning_rate: float
    num_workers: int
    seed: int


@dataclass
class StageState:
    """Where a stage stands between two optimizer steps.

    Args:
        epoch, step: `step` optimizer steps of epoch `epoch` are done.
        images, sums: Images of this epoch so far, and sums over them of the loss, its parts and the accuracy.
        optimizer: State of Adam; `None` before the first step.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    optimizer: dict | None = None


class EpochSampler(Sampler[int]):
    """A seeded order of the images, new in each epoch, cut to whole batches; it can start after `skip` images.

    Incomplete last batches are dropped, but images fewer than a batch still make one.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        self.num_images, self.seed = num_images, seed
        self.length = num_images // batch_size * batch_size or num_images
        self.steps = math.ceil(self.length / batch_size)
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.num_images, generator=generator)[self.skip : self.length].tolist()


def learning_rate_at(epoch: int, num_epochs: int, base: float) -> float:
    """The papers' cosine schedule, constant within an epoch: full in epochs 0 and 1, 1.6% of it in the last.

    Args:
        epoch: From 0.
        base: Learning rate of the first epoch.
    """
    return base * math.cos(99 * math.pi * max(epoch - 1, 0) / (200 * max(num_epochs - 1, 1)))


def run_stage(
    accelerator: Accelerator,
    module: nn.Module,
    images: TaskImages,
    settings: StageSettings,
    *,
    start: StageState | None = None,
    on_step: Callable[[Callable[[], StageState]], None] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Trains `module` on `images` with a fresh Adam.

    Args:
        accelerator: With `split_batches`, so that `batch_size` counts all processes.
        module: Called as `module(pixel_values=, labels=)`; answers with `loss`, `logits` over the task's classes and
            named parts of the loss. Its trainable parameters are those with gradients now.
        images: The task's training images.
        settings: See [`StageSettings`].
        start: Where to go on in a resumed stage.
        on_step: Called on every process after each optimizer step, with a function that takes the stage's state.
        on_epoch: Called after each epoch with its averages over all images: loss, parts, accuracy (%), seconds.

    Raises:
        StageError: The loss is not finite.
    """
    start = start or StageState()
    parts = accelerator.gradient_accumulation_steps
    sampler = EpochSampler(len(images), settings.batch_size, settings.seed)
    loader = DataLoader(
        images, batch_size=max(settings.batch_size // parts, 1), sampler=sampler, num_workers=settings.num_workers
    )
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=settings.learning_rate)
    if start.optimizer is not None:
        optimizer.load_state_dict(start.optimizer)
    prepared, optimizer, loader = accelerator.prepare(module, optimizer, loader)
    module.train()
    bar = tqdm(total=settings.num_epochs * sampler.steps, desc=settings.name, unit="step", leave=False)
    bar.update(start.epoch * sampler.steps + start.step)

    for epoch in range(start.epoch, settings.num_epochs):
        began, averages, step = time.perf_counter(), _Averages(accelerator), 0
        if epoch == start.epoch:
            step = start.step
            averages.resume(start)
        sampler.skip = step * settings.batch_size
        loader.set_epoch(epoch)
        images.set_epoch(epoch)
        rate = learning_rate_at(epoch, settings.num_epochs, settings.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for batch in loader if step < sampler.steps else ():
            with accelerator.accumulate(prepared), accelerator.autocast():
                output = prepared(pixel_values=batch["pixel_values"], labels=batch["labels"])
                accelerator.backward(output["loss"])
                optimizer.step()
                optimizer.zero_grad()
            averages.add(output, batch["labels"], module)
            if not accelerator.sync_gradients:
                continue
            step += 1
            bar.update()
            if step % 10 == 0 or step == sampler.steps:
                _check_and_show(bar, averages, settings, epoch, step, rate)
            if on_step is not None:
                on_step(partial(_take_state, epoch, step, averages, optimizer))
        if on_epoch is not None:
            images_seen, sums = averages.total()
            results = {name: value / images_seen for name, value in sums.items()}
            on_epoch({"epoch": epoch, **results, "learning_rate": rate, "seconds": time.perf_counter() - began})
    bar.close()
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    accelerator.free_memory()


def _take_state(epoch: int, step: int, averages: "_Averages", optimizer: torch.optim.Optimizer) -> StageState:
    return StageState(epoch, step, *averages.total(), optimizer.state_dict())


class _Averages:
    """Averages over the images of an epoch, kept on the device until they are asked for."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.images = 0
        self.sums: dict[str, Tensor] = {}

    def resume(self, state: StageState) -> None:
        if self.accelerator.is_main_process:  # the state holds the sums over all processes
            self.images, self.sums = state.images, {name: self._tensor(value) for name, value in state.sums.items()}

    def add(self, output: dict[str, Tensor], labels: Tensor, module: nn.Module) -> None:
        values = {name: value.detach() * len(labels) for name, value in output.items() if name != "logits"}
        predicted = output["logits"].argmax(1) + module.student.config.current_columns.start
        values["accuracy"] = 100 * (predicted == labels).sum()
        self.images += len(labels)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, self._tensor(0.0)) + value

    def local(self, name: str) -> float:
        """This process's average so far."""
        return float(self.sums[name] / self.images)

    def total(self) -> tuple[int, dict[str, float]]:
        """Images and sums over all processes."""
        reduce = self.accelerator.reduce
        return int(reduce(self._tensor(self.images))), {name: float(reduce(v)) for name, v in self.sums.items()}

    def _tensor(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)


def _check_and_show(
    bar: tqdm, averages: _Averages, settings: StageSettings, epoch: int, step: int, rate: float
) -> None:
    loss = averages.local("loss")
    if not math.isfinite(loss):
        raise StageError(
            f"the loss is not finite in {settings.name}, epoch {epoch + 1}, step {step}, at learning rate {rate:g}: "
            "lower --learning_rate"
        )
    bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{averages.local('accuracy'):.0f}%")
