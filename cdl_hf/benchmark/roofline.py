"""Upper bounds on the speed of GPUs: each operation takes the time of its arithmetic or of its memory traffic.

Computed, not measured: from the operations of a step on fake tensors and the rates of the data sheets, without
overlap, launch costs or fused operations.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..distillation import TrainingObjective
from ..models import compute_copy, networks, prefix_attention, prompt_pools
from ..training.dry_run import CPU_ATTENTION, FakeSteps
from .pairs import MeasuredPair


@dataclass(frozen=True)
class Device:
    """Rates of a data sheet: dense bf16 operations and bytes of memory traffic a second."""

    flops: float
    bandwidth: float


DEVICES = {"A100": Device(312e12, 2.04e12), "H100": Device(989e12, 3.35e12)}


class _Traffic(TorchDispatchMode):
    """Arithmetic and memory traffic of each operation."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet, flops = func._overloadpacket, 0
        if packet in CPU_ATTENTION:
            shapes = [a.shape if isinstance(a, Tensor) else a for a in args]
            flops = CPU_ATTENTION[packet](*shapes)
        elif packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, out))
            self.operations.append((flops, sum(t.nbytes for t in leaves if isinstance(t, Tensor))))
        return out

    def seconds(self, device: Device) -> float:
        return sum(max(flops / device.flops, size / device.bandwidth) for flops, size in self.operations)


def compute(pair: MeasuredPair, batch_size: int) -> dict[str, dict[str, float]]:
    """For each step in bf16: `gflops` and `megabytes` an image, and images a second of each device.

    Args:
        pair: On the meta device, with a task started in both models.
    """
    method, teacher, side = pair.objective, pair.teacher, pair.image_size
    steps = FakeSteps(pair.objectives, side, torch.device("cpu"), "bf16")
    classes = pair.student.config.current_classes
    with steps.fake_mode:
        pixel_values = torch.empty(batch_size, 3, side, side)
        labels = torch.full((batch_size,), classes.start)
        query = pair.student.query(pixel_values)
        logits = torch.empty(batch_size, classes.stop - classes.start)

    def train(module: TrainingObjective, **given: Tensor | None) -> Callable[[], None]:
        optimizer = torch.optim.Adam(p for p in module.train().parameters() if p.requires_grad)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = module(pixel_values=pixel_values, labels=labels, **given)["loss"]
            loss.backward()
            optimizer.step()
            module.zero_grad()

        return step

    def evaluate() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for model in (pair.student.eval(), teacher.eval()):
                model(pixel_values, query=query)

    kinds = {
        "teacher step": train(TrainingObjective(teacher)),
        "student step": train(method),
        "student step, stored queries": train(method, query=query),
        "student step, stored queries and teacher's logits": train(method, query=query, teacher_logits=logits),
        "evaluation of both, stored queries": evaluate,
    }
    figures = {}
    for name, step in kinds.items():
        with steps.fake_mode, _as_on_a_gpu():
            step()  # allocates the optimizer's state
            with _Traffic() as traffic:
                step()
        flops, size = (sum(each) for each in zip(*traffic.operations, strict=True))
        figures[name] = {"gflops": flops / batch_size / 1e9, "megabytes": size / batch_size / 1e6}
        for label, limits in DEVICES.items():
            figures[name][label] = batch_size / traffic.seconds(limits)
    return figures


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    with ExitStack() as stack:
        for module in (compute_copy, networks, prefix_attention, prompt_pools):
            stack.enter_context(patch.object(module, "is_on_cpu", lambda tensor: False))
        yield


def table(figures: dict[str, dict[str, float]], title: str) -> str:
    lines = [
        f"| {title} | GFLOP an image | MB moved an image | " + " | ".join(f"{d}, images/s" for d in DEVICES) + " |",
        "|---|---:|---:|" + "---:|" * len(DEVICES),
    ]
    for name, row in figures.items():
        rates = " | ".join(f"{row[device]:,.0f}" for device in DEVICES)
        lines.append(f"| {name} | {row['gflops']:.1f} | {row['megabytes']:.0f} | {rates} |")
    return "\n".join(lines)
