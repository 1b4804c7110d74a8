"""Checks of correctness, speed and memory on a GPU, each a function of a [`Workbench`] that yields its figures."""

import itertools
import statistics
import subprocess
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import default_collate

from .. import catalogue
from ..arguments.config import CDLConfig, DistillationArguments, ModelArguments
from ..arguments.stream import StreamArguments
from ..cli import parse
from ..data import TaskImages, eval_transform, image_processor_for, train_transform
from ..distillation import METHODS, TrainingObjective
from ..models import PromptViTConfig
from ..models.classifiers import RanPAC
from ..models.compute_copy import copied_weights
from ..models.modeling_prompt_vit import frozen_networks
from ..models.networks import network_of
from ..models.prompt_pools import POOLS
from ..runs.distributed import COMPILED_VARIANTS
from ..training.build import build_objective
from ..training.dry_run import FakeSteps
from ..training.stage import Stage, StageSettings
from .machine import flops_of, peak_growth
from .pairs import MeasuredPair, build_pair
from .steps import Step, Steps

PEAK = 989e12  # dense bf16 operations a second of an H100, by its data sheet
Figures = Iterator[tuple[str, Any]]  # names and values, each as soon as it is known
PROFILED = ("teacher step", "student step, stored queries and teacher's logits")
FLAGGED = ("flash", "fmha", "sdpa", "softmax", "cudnn", "mem_eff")  # parts of the names of attention kernels


@dataclass(frozen=True)
class Workbench:
    """What the checks run on, and how large.

    Args:
        device: The GPU; in a rehearsal the CPU.
        teacher, student: Backbones with random weights, by their timm names.
        batch_sizes: Images of a step; the first is the one at which memory and compiled blocks are measured.
        repeats: Timed steps, of which the median is told.
        ranpac_widths: Numbers of random features.
    """

    device: torch.device
    teacher: str = "vit_base_patch16_224"
    student: str = "vit_small_patch16_224"
    batch_sizes: tuple[int, ...] = (128, 16)
    repeats: int = 20
    ranpac_widths: tuple[int, ...] = (2000, 10000)

    def pair(
        self, prompts: str = "coda_prompt", distillation: str = "kdp", *, small: bool = False, meta: bool = False
    ) -> MeasuredPair:
        """Teacher and student on the device, or on `meta`, with the first task begun; `small` for two small ViTs."""
        teacher, student = (self.student, self.student) if small else (self.teacher, self.student)
        given = ["--teacher", teacher, "--student", student, "--prompt_method", prompts]
        arguments = parse(
            (StreamArguments, ModelArguments, DistillationArguments, CDLConfig),
            [*given, "--distillation", distillation],
        )
        return build_pair(tuple(arguments), torch.device("meta") if meta else self.device)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, step: Callable[[], object]) -> float:
        """Median time of a step, after three others; on a GPU between events in its queue."""
        for _ in range(3):
            step()
        times = []
        for _ in range(self.repeats):
            if self.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                step()
                end.record()
                torch.cuda.synchronize(self.device)
                times.append(start.elapsed_time(end))
            else:
                began = time.perf_counter()
                step()
                times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times)


def machine(bench: Workbench) -> Figures:
    """Device, driver, versions, and the rates of a large matrix product and of a copy."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if bench.device.type != "cuda":
        yield from {"device": str(bench.device), **versions}.items()
        return
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    a, b = (torch.randn(8192, 8192, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device=bench.device)
    target = torch.empty_like(source)
    yield from {
        "device": torch.cuda.get_device_name(bench.device),
        "capability": torch.cuda.get_device_capability(bench.device),
        "driver": driver,
        **versions,
        "bf16_tflops": 2 * 8192**3 / bench.milliseconds(lambda: a @ b) / 1e9,
        "copy_tb_per_second": 2 * source.nbytes / bench.milliseconds(lambda: target.copy_(source)) / 1e9,
    }.items()


def precision(bench: Workbench) -> Figures:
    """Every method once in bf16 and fp16: cosine of its gradients with those of float32, and its loss."""
    cosines = []
    for methods in _methods_of_one_student():
        pair = None
        for prompts, method in methods:
            pair = pair or bench.pair(prompts, method, small=True)  # most of the time
            batch = pair.random_batch(8, bench.device)
            objective = build_objective(pair.student, pair.teacher, DistillationArguments(distillation=method))
            found = _in_each_precision(objective.to(bench.device), batch)
            cosines.append(found["bf16_cosine"])
            yield f"{prompts}, {method}", found
    yield "lowest_bf16_cosine", torch.tensor(cosines).min().item()  # NaN if one is


def _methods_of_one_student() -> Iterable[list[tuple[str, str]]]:
    """Prompt and distillation methods, those together for which the student has the same prompts and KD branch."""
    found = defaultdict(list)
    for prompts, method in itertools.product(catalogue.PROMPT_METHODS, catalogue.DISTILLATION_METHODS):
        is_refused = method == "cdl_prompt" and not POOLS[prompts].needs_query
        if prompts != "none" and not is_refused and METHODS[method].trains:
            found[prompts, METHODS[method].kd_branch].append((prompts, method))
    return found.values()


def _in_each_precision(objective: TrainingObjective, batch: dict[str, Tensor]) -> dict[str, Any]:
    device = batch["labels"].device.type
    gradients, losses = [], []
    for dtype in (None, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        objective.train().zero_grad()
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            loss = objective(**batch)["loss"]
        (loss * (1024 if dtype == torch.float16 else 1)).backward()  # as a gradient scaler would
        found = [p.grad.float().flatten() for p in objective.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
        losses.append(loss.item())
    return {
        "losses": losses,
        "bf16_cosine": _cosine(gradients[1], gradients[0]),
        "fp16_cosine": _cosine(gradients[2], gradients[0]),
    }


def waits(bench: Workbench) -> Figures:
    """Places where a training step waits for the device, and how often in five steps."""
    pair = bench.pair()
    images = TaskImages(
        pair.stream[0].train, pair.stream.label_to_class_id, train_transform(pair.image_processor), seed=0
    )
    for role, objective in pair.objectives.items():
        settings = StageSettings(role, 1, 8, 1e-3, 0, seed=0)
        accelerator = Accelerator(mixed_precision="bf16", cpu=bench.device.type == "cpu")
        stage = Stage(accelerator, {role: objective}, images, settings)
        with warnings.catch_warnings(record=True) as caught, _sync_warnings(bench.device) as watch:
            warnings.simplefilter("always")
            for step in (step for epoch in stage for step in epoch):
                if step == 2:
                    watch(True)
                if step == 7:
                    watch(False)
                    break
        found = [each for each in caught if "called a synchronizing" in str(each.message)]  # not of the mode itself
        places = Counter(f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}" for each in found)
        yield role, {"in_five_steps": sum(places.values()), "places": dict(places.most_common())}


def kernels(bench: Workbench) -> Figures:
    """Names of the attention kernels of a teacher step with each prompt method, in bf16 and float32."""
    for prompts in ("coda_prompt", "l2p", "dualprompt", "apt"):
        pair = bench.pair(prompts)
        batch = pair.random_batch(bench.batch_sizes[-1], bench.device)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", None)):
            step = partial(_pass, TrainingObjective(pair.teacher).train(), batch, dtype)
            step()
            with _profiler(bench.device) as profiler:
                step()
                bench.synchronize()
            names = (event.key for event in profiler.key_averages())
            kinds = {name[:80] for name in names if any(f in name.lower() for f in FLAGGED)}
            yield f"{prompts}, {name}", sorted(kinds)


def steps(bench: Workbench) -> Figures:
    """Steps and evaluation of both models, ours and plain, in each precision and batch size."""
    pair = bench.pair()
    for name, dtype, tf32 in (("bf16", torch.bfloat16, True), ("tf32", None, True), ("fp32", None, False)):
        for size in bench.batch_sizes:
            with _tf32(tf32):
                made = Steps(pair, pair.random_batch(size, bench.device), dtype)
                for step_name, ours in made.ours.items():
                    plain = made.plain.get(step_name)
                    yield f"{step_name}, batch {size}, {name}", _compared(bench, ours, plain, size)
                del made
                if bench.device.type == "cuda":
                    torch.cuda.empty_cache()


def compiled(bench: Workbench) -> Figures:
    """The same in bf16 with compiled blocks, and the seconds that compiling takes."""
    for size, made in _with_compiled_blocks(bench):
        for name in PROFILED:
            step, began = _whole(made.ours[name]), time.perf_counter()
            step()
            bench.synchronize()
            seconds = time.perf_counter() - began
            yield f"{name}, batch {size}", {"first_step_seconds": seconds, "ms": bench.milliseconds(step)}


def profile(bench: Workbench) -> Figures:
    """Kernels of a step in bf16, with blocks as they are and compiled: their number, time, and the longest ones."""
    pair = bench.pair()
    eager = ((size, Steps(pair, pair.random_batch(size, bench.device), torch.bfloat16)) for size in bench.batch_sizes)
    for kind, all_made in (("", eager), (", compiled", _with_compiled_blocks(bench))):
        for size, made in all_made:
            for name in PROFILED:
                step = _whole(made.ours[name])
                bench.milliseconds(step)
                with _profiler(bench.device) as profiler:
                    step()
                    bench.synchronize()
                events = (e for e in profiler.key_averages() if not e.is_user_annotation)  # which hold kernels
                on_device = [e for e in events if e.device_type.name.lower() == bench.device.type]
                kind_of_time = "self_cpu_time_total" if bench.device.type == "cpu" else "self_device_time_total"
                times = {event.key[:80]: getattr(event, kind_of_time) / 1000 for event in on_device}
                longest = sorted(times, key=lambda key: -times[key])[:15]
                yield (
                    f"{name}, batch {size}{kind}",
                    {
                        "kernels": sum(event.count for event in on_device),
                        "ms": sum(times.values()),
                        "longest_ms": {key: times[key] for key in longest},
                    },
                )


def _with_compiled_blocks(bench: Workbench) -> Iterator[tuple[int, Steps]]:
    torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
    for size in bench.batch_sizes:
        torch._dynamo.reset()  # or blocks would be compiled for batches of any size
        pair = bench.pair()
        networks = {network for role in (pair.teacher, pair.objective) for _, network in frozen_networks(role)}
        for block in (block for network in networks for block in network_of(network).blocks):
            block.compile()
        yield size, Steps(pair, pair.random_batch(size, bench.device), torch.bfloat16)


def memory(bench: Workbench) -> Figures:
    """Peak memory of a training step as computed by `--dry_run` and as measured."""
    size = bench.batch_sizes[0]
    pair = bench.pair()
    made = Steps(pair, pair.random_batch(size, bench.device), torch.bfloat16)
    del made.plain_teacher, made.plain_student, made.plain
    fakes = FakeSteps(bench.pair(meta=True).objectives, pair.image_size, bench.device, "bf16")
    for each in (lambda: fakes.evaluation(size), _whole(made.ours["evaluation of both"])):
        each()  # as in a run, the other model's copies in bfloat16 are there
    for role in pair.objectives:
        step = _whole(made.ours[f"{role} step"])
        step()
        measured = peak_growth(step, bench.device)
        modules = (pair.teacher, pair.objective)
        weights = [t for each in modules for t in (*each.state_dict().values(), *copied_weights(each))]
        yield (
            role,
            {
                "computed_bytes": fakes.training([role], size).peak_bytes,
                "measured_growth_bytes": measured,
                "weights_bytes": sum(weight.nbytes for weight in weights),
            },
        )


def crops(bench: Workbench) -> Figures:
    """A batch of CIFAR's size resized on the device: its time, that of a copy of pixels, whether bits are the same."""
    processor = image_processor_for({"input_size": (3, 224, 224), "crop_pct": 0.9})
    size = bench.batch_sizes[0]
    noise = torch.randint(256, (size, 32, 32, 3), dtype=torch.uint8).numpy()
    images = [PIL.Image.fromarray(each) for each in noise]
    for name, transform in (("training", train_transform(processor)), ("evaluation", eval_transform(processor))):
        torch.manual_seed(0)
        pixels = torch.stack([transform.pixels(image) for image in images])
        torch.manual_seed(0)  # for the same crops
        batch = default_collate([transform.whole(image) for image in images])
        batch = {key: values.to(bench.device) for key, values in batch.items()}
        pinned = pixels.pin_memory() if bench.device.type == "cuda" else pixels
        with _tf32(True):
            figures = {
                "same_bits": torch.equal(transform.resize(**batch).cpu(), pixels.float()),
                "ms": bench.milliseconds(partial(transform.resize, **batch)),
                "copy_of_pixels_ms": bench.milliseconds(partial(pinned.to, bench.device, non_blocking=True)),
            }
        yield f"{name}, batch {size}", figures


def ranpac(bench: Workbench) -> Figures:
    """Seconds and peak memory of fitting RanPAC to 10,000 images with features of size 768."""
    features, labels = torch.randn(10_000, 768, device=bench.device), torch.arange(10_000, device=bench.device) % 100
    for width in bench.ranpac_widths:
        classifier = RanPAC(PromptViTConfig(classes_per_task=[100], head="ranpac", ranpac_width=width), 768)
        classifier.to(bench.device).init_weights()
        began = time.perf_counter()
        peak = peak_growth(partial(classifier.fit, features, labels), bench.device)
        bench.synchronize()
        yield str(width), {"seconds": time.perf_counter() - began, "peak_bytes": peak}


def _compared(bench: Workbench, ours: Step, plain: Step | None, size: int) -> dict[str, float | None]:
    step = _whole(ours)
    milliseconds = bench.milliseconds(step)
    row = {
        "ms": milliseconds,
        "images_per_second": 1000 * size / milliseconds,
        "share_of_peak": 1000 * flops_of(step) / milliseconds / PEAK,
        "peak_growth_bytes": peak_growth(step, bench.device),
    }
    if plain is not None:
        slow = bench.milliseconds(_whole(plain))
        row |= {"plain_ms": slow, "gain": slow / milliseconds}
        row["plain_peak_growth_bytes"] = peak_growth(_whole(plain), bench.device)
    return row


def _profiler(device: torch.device) -> torch.profiler.profile:
    activity = torch.profiler.ProfilerActivity
    on_gpu = [activity.CUDA] if device.type == "cuda" else []
    return torch.profiler.profile(activities=[activity.CPU, *on_gpu])


def _whole(step: Step) -> Callable[[], None]:
    """The step without a clock between its parts, for which it would wait."""
    return lambda: step(lambda part: None)


def _pass(objective: TrainingObjective, batch: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Forward and backward."""
    with torch.autocast(batch["labels"].device.type, dtype=dtype, enabled=dtype is not None):
        loss = objective(**batch)["loss"]
    loss.backward()


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _sync_warnings(device: torch.device) -> Iterator[Callable[[bool], None]]:
    """A switch for torch's warnings of calls that wait for the GPU; on a CPU it does nothing."""

    def watch(on: bool) -> None:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn" if on else "default")

    try:
        yield watch
    finally:
        watch(False)


CHECKS: dict[str, Callable[[Workbench], Figures]] = {
    check.__name__: check
    for check in (machine, precision, waits, kernels, crops, steps, compiled, profile, memory, ranpac)
}
