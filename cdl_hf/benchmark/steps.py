"""Training and evaluation steps compared with plain ones: time of each part, memory, operations."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..distillation import TrainingObjective
from ..distillation.logit_methods import KD
from ..models.modeling_prompt_vit import frozen_networks
from ..training.stage import create_optimizer
from .machine import flops_of, linear_rate, now, peak_growth
from .pairs import MeasuredPair
from .plain import PlainPromptViT, plain_method

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
# A step calls its argument with the name of each part that it has completed.
Step = Callable[[Callable[[str], None]], None]


class Steps:
    """The steps of a run on one batch, by the package and by the plain implementation.

    Args:
        pair: Teacher and student, with the same task started in both.
        batch: `pixel_values` and `labels` on the device.
        dtype: Of autocast; None for float32.

    Attributes:
        ours, plain: Steps by their names; plain ones only where they differ from each other.
    """

    def __init__(self, pair: MeasuredPair, batch: dict[str, Tensor], dtype: torch.dtype | None):
        self.batch, self.dtype = batch, dtype
        self.teacher, self.method, self.student = pair.teacher, pair.objective, pair.student
        self.device = batch["labels"].device
        self.plain_teacher, self.plain_student = PlainPromptViT.like(self.teacher), PlainPromptViT.like(self.student)
        plain = plain_method(self.method, self.plain_student, self.plain_teacher)
        self.shares_query = self.student.shares_query_with(self.teacher)
        # A method that compares tokens runs its teacher in its own forward pass; `none` has no teacher.
        asked = self.teacher if isinstance(self.method, KD) and not self.method.reads_tokens else None
        query = self.student.query(batch["pixel_values"])
        stored = {"query": query, "teacher_logits": self._teach(self.teacher, query)}
        self.ours: dict[str, Step] = {
            "teacher step": self._training(TrainingObjective(self.teacher), {}),
            "student step": self._training(self.method, {}, asked),
            "student step, stored queries": self._training(self.method, {"query": query}, asked),
            "student step, stored queries and teacher's logits": self._training(self.method, stored),
            "evaluation of both": self._evaluation(None),
            "evaluation of both, stored queries": self._evaluation(query),
        }
        self.plain: dict[str, Step] = {
            "teacher step": self._plain_training(TrainingObjective(self.plain_teacher)),
            "student step": self._plain_training(plain),
            "evaluation of both": self._plain_evaluation(),
        }

    def _training(
        self, method: TrainingObjective, given: dict[str, Tensor | None], teacher: nn.Module | None = None
    ) -> Step:
        """A step with the optimizer of training; `given` holds stored outputs, and a `teacher` computes its logits."""
        optimizer = create_optimizer(method, 1e-3)
        pixel_values = self.batch["pixel_values"]

        def step(done: Callable[[str], None]) -> None:
            method.train()
            outputs = dict(given)
            with self._autocast():
                if "query" not in outputs:
                    outputs["query"] = method.model.query(pixel_values)
                    done("query")
                if teacher is not None:
                    outputs["teacher_logits"] = self._teach(teacher, outputs["query"])
                    done("teacher")
                loss = method(**self.batch, **outputs)["loss"]
            done("student")
            _update(loss, method, optimizer, done)

        return step

    @torch.no_grad()
    def _teach(self, teacher: nn.Module, query: Tensor | None) -> Tensor:
        """The teacher's logits over the task's classes."""
        logits = teacher.eval()(self.batch["pixel_values"], query=query if self.shares_query else None).logits
        return logits[:, self.student.config.current_classes]

    def _plain_training(self, method: TrainingObjective) -> Step:
        optimizer = torch.optim.Adam(_trainable(method))

        def step(done: Callable[[str], None]) -> None:
            method.train()
            with self._autocast():
                loss = method(**self.batch)["loss"]
            done("forward")
            _update(loss, method, optimizer, done)

        return step

    def _evaluation(self, query: Tensor | None) -> Step:
        def step(done: Callable[[str], None]) -> None:
            with torch.inference_mode(), self._autocast():
                asked = self.student.query(self.batch["pixel_values"]) if query is None else query
                if query is None:
                    done("query")
                self.student.eval()(self.batch["pixel_values"], query=asked)
                done("student")
                self.teacher.eval()(self.batch["pixel_values"], query=asked if self.shares_query else None)
                done("teacher")

        return step

    def _plain_evaluation(self) -> Step:
        def step(done: Callable[[str], None]) -> None:
            with torch.no_grad(), self._autocast():
                self.plain_student.eval()(self.batch["pixel_values"])
                self.plain_teacher.eval()(self.batch["pixel_values"])
            done("forward")

        return step

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def measure(steps: Steps, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` rounds, each with one of every step, the package's and the plain one in turn.

    Returns:
        `linear_gflops_per_second`, and under `ours` and `plain` the figures of each step by name.
    """
    tokens = steps.batch["pixel_values"].shape[0] * (steps.teacher.network.module.patch_embed.num_patches + 1)
    named = {f"{kind}: {name}": step for kind in ("ours", "plain") for name, step in getattr(steps, kind).items()}
    memory, flops = {}, {}
    for name, step in named.items():  # which also warms up

        def counted(name=name, step=step):
            flops[name] = flops_of(lambda: step(lambda part: None))

        memory[name] = peak_growth(counted, steps.device)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in named}
    rates = []
    for _ in range(repeats):
        rates.append(linear_rate(tokens, steps.teacher.network.embed_dim, steps.device, steps.dtype))
        for name in sorted(named, key=lambda name: name.split(": ")[1]):
            times[name].append(timed(named[name], steps.device))
    rate = statistics.median(rates)
    weights = {
        "ours": _bytes([steps.teacher, steps.method]),
        "plain": _bytes([steps.plain_teacher, steps.plain_student]),
    }
    figures: dict[str, Any] = {"linear_gflops_per_second": rate / 1e9, "ours": {}, "plain": {}}
    for name, rounds in times.items():
        kind, step = name.split(": ")
        totals = [sum(parts.values()) for parts in rounds]
        seconds = statistics.median(totals)
        figures[kind][step] = {
            "seconds": seconds,
            "images_per_second": len(steps.batch["labels"]) / seconds,
            "parts": {part: statistics.median(r[part] for r in rounds) for part in rounds[0]},
            "gflops": flops[name] / 1e9,
            "share_of_linear_rate": statistics.median(
                flops[name] / total / each for total, each in zip(totals, rates, strict=True)
            ),
            "peak_bytes": None if (growth := memory[name]) is None else weights[kind] + growth,
        }
        if kind == "ours":
            plain = times[f"plain: {step.split(',')[0]}"]
            figures[kind][step]["gain"] = statistics.median(
                sum(slow.values()) / total for slow, total in zip(plain, totals, strict=True)
            )
    return figures


def table(figures: dict[str, Any], title: str) -> str:
    lines = [
        f"| {title} | seconds | images/s | plain, seconds | gain | GFLOP | share of linear rate | peak MB | plain |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, ours in figures["ours"].items():
        plain = figures["plain"][name.split(",")[0]]
        lines.append(
            f"| {name} | {ours['seconds']:.3f} | {ours['images_per_second']:.1f} | {plain['seconds']:.3f} | "
            f"{ours['gain']:.2f} | {ours['gflops']:.1f} | {ours['share_of_linear_rate']:.0%} | "
            f"{_megabytes(ours['peak_bytes'])} | {_megabytes(plain['peak_bytes'])} |"
        )
    lines += ["", f"linear layer: {figures['linear_gflops_per_second']:.0f} GFLOP/s; parts of the steps:"]
    for name, ours in figures["ours"].items():
        parts = ", ".join(f"{part} {seconds / ours['seconds']:.0%}" for part, seconds in ours["parts"].items())
        lines.append(f"- {name}: {parts}")
    return "\n".join(lines)


def profile(steps: Steps, file: str) -> None:
    """Writes a trace of a step of each kind that Perfetto (ui.perfetto.dev) opens."""
    with torch.profiler.profile() as profiler:
        for name, step in steps.ours.items():
            with torch.profiler.record_function(name):
                step(lambda part: None)
    profiler.export_chrome_trace(file)


def timed(step: Step, device: torch.device) -> dict[str, float]:
    """Seconds of each part."""
    parts: dict[str, float] = {}
    last = now(device)

    def done(part: str) -> None:
        nonlocal last
        moment = now(device)
        parts[part] = moment - last
        last = moment

    step(done)
    return parts


def _update(loss: Tensor, method: nn.Module, optimizer: torch.optim.Optimizer, done: Callable[[str], None]) -> None:
    loss.backward()
    done("backward")
    optimizer.step()
    method.zero_grad()
    done("optimizer")


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    """All parameters except those of the frozen transformers, which get gradients in the plain implementation."""
    frozen = {p for _, child in frozen_networks(module) for p in child.parameters()}
    return [p for p in module.parameters() if p.requires_grad and p not in frozen]


def _bytes(modules: list[nn.Module]) -> int:
    tensors = {t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors)


def _megabytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:,.0f}"
