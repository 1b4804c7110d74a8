"""Everything that only a GPU can show, in a sitting of minutes: checks of the package, and pre-training of backbones.

    python recipes/gpu_sitting.py --output_dir runs/sitting --only checks --time_limit 400
    python recipes/gpu_sitting.py --output_dir runs/pair --only pretrain --dataset my_photographs --time_limit 300
    python recipes/gpu_sitting.py --output_dir runs/rehearsal --rehearse    # the same with tiny sizes on a CPU

Checks of speed run one after the other, then those of correctness side by side; each runs in a process of its own, so
that none ends or disturbs the others, and those that the time does not reach are left out. `sitting.json` and
`sitting.txt` are written after each; `logs/` has what each has printed. Of the backbones a CNN is trained first; then
three transformers learn from its soft labels, side by side.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from cdl_hf.benchmark.gpu_checks import CHECKS, Workbench
from cdl_hf.cli import argument, cli_error, parse, to_dict
from cdl_hf.utils import num_cores, versions, write_json

ROOT = Path(__file__).resolve().parents[1]
# Name -> seconds that it may take
TOGETHER = {"machine": 60, "figures": 240, "precision": 240, "runs": 240, "waits": 120, "kernels": 120}
TOGETHER |= {"distributed": 240, "out_of_memory": 120, "gpu_tests": 240}
IN_TURN = {"crops": 30, "steps": 150, "compiled": 60, "profile": 60, "end_to_end": 90, "memory": 60, "ranpac": 60}
# What pretrain.py is given. Batches are large, as networks this small leave a GPU waiting for its host. The stored
# images are smaller than those of the networks, which are made for the still smaller ones of CIFAR-100.
COMMON = "--images photographs --stored_size 48 --mean 0.5 --std 0.25 --batch_size 1024 --optimizer muon "
COMMON += "--learning_rate 7e-3 --num_train_epochs 300 --warmup_epochs 15 --save_epochs 20"
GUIDE = "--model resnet10t --image_size 128 --mixing 0.6 --augmentation 0.8"
GUIDE_ARGS = {"layers": [2, 2, 2, 2], "channels": [64, 128, 256, 512], "stem_width": 32}
GUIDE_SHARE = 0.52  # of the time
TRANSFORMER = "--model vit_tiny_r_s16_p8_224 --image_size 64"
TRANSFORMER_ARGS = {"img_size": 64, "patch_size": 4, "depth": 6}  # 17 tokens, as the stem divides the sides by four
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "guide": (GUIDE, GUIDE_ARGS),
    "w256": (
        f"{TRANSFORMER} --mixing 0.5 --augmentation 0.7 --drop_path 0.05",
        {**TRANSFORMER_ARGS, "embed_dim": 256, "num_heads": 4},
    ),
    "w128": (
        f"{TRANSFORMER} --mixing 0.3 --augmentation 0.6",
        {**TRANSFORMER_ARGS, "embed_dim": 128, "num_heads": 2},
    ),
    "w64": (f"{TRANSFORMER} --mixing 0.2 --augmentation 0.5", {**TRANSFORMER_ARGS, "embed_dim": 64, "num_heads": 2}),
}
SAVING = 32  # seconds that pretrain.py needs before its clock starts and, after its last step, to save


@dataclass
class SittingArguments:
    """The sitting."""

    output_dir: str = argument("New folder for figures, logs and backbones")
    only: list[str] = argument("checks, pretrain, or names of single checks", ["checks", "pretrain"])
    dataset: str | None = argument("Photographs to pre-train on", None)
    time_limit: float = argument("Seconds after which the sitting has ended", 840, min=10)
    deadline: float | None = argument("Instead of time_limit: when the machine's monotonic clock shows this", None)
    check: str | None = argument("Instead: this check alone, in this process, as the sitting starts it", None)
    rehearse: bool = argument("Tiny sizes on a CPU, to see that all of it runs", False)


@dataclass
class Outcome:
    """What came of a check: `state` is running, done, failed, late or left out."""

    state: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


class Sitting:
    """Runs checks in processes of their own until the time is over, and keeps what they find.

    Args:
        output: Folder for the figures and logs.
        deadline: `time.monotonic()` at which it ends.
        about: Written into `sitting.json` beside the outcomes.
    """

    def __init__(self, output: Path, deadline: float, about: dict[str, Any]):
        self.output, self.deadline, self.about = output, deadline, about
        self.outcomes: dict[str, Outcome] = {}
        (output / "logs").mkdir(parents=True)
        (output / "figures").mkdir()

    def run(self, checks: dict[str, tuple[list[str], float]]) -> None:
        """Runs checks side by side: name -> command, and seconds that it may take.

        A command writes its figures to `<output>/figures/<name>.json`; those written by one that is ended too
        early are kept. The commands share the cores: with more threads than cores they would all be late. Processes
        are not forked from this one: a fork of a process that has asked for the GPU cannot use it.
        """
        running: dict[str, tuple[subprocess.Popen, float, float]] = {}
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(num_cores() // max(len(checks), 1), 1))}
        for name, (command, seconds) in checks.items():
            began = time.monotonic()
            left = self.deadline - began
            if left < 5:
                self.outcomes[name] = Outcome("left out", reason="no time")
                continue
            with self._log(name).open("w") as log:  # a session of its own, so that all its processes can be ended
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            running[name] = process, began, began + min(seconds, left)
            self.outcomes[name] = Outcome("running")
        while running:
            time.sleep(0.2)
            for name, (process, began, end) in list(running.items()):
                if process.poll() is None and time.monotonic() < end:
                    continue
                self.outcomes[name] = self._outcome(name, process.poll())
                self.outcomes[name].seconds = round(time.monotonic() - began, 1)
                with contextlib.suppress(ProcessLookupError):  # all have ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                del running[name]
                self.write()
        self.write()

    def write(self) -> None:
        """Writes `sitting.json` and `sitting.txt`."""
        checks = {name: vars(outcome) for name, outcome in self.outcomes.items()}
        write_json(self.output / "sitting.json", {**self.about, "checks": checks})
        lines = []
        for name, outcome in self.outcomes.items():
            lines.append(f"{name}: {outcome.state}, {outcome.seconds} s {outcome.reason}".rstrip())
            lines += [f"    {key}: {value}" for key, value in _flat(outcome.figures)]
        (self.output / "sitting.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _log(self, name: str) -> Path:
        return self.output / "logs" / f"{name}.log"

    def _outcome(self, name: str, code: int | None) -> Outcome:
        file = self.output / "figures" / f"{name}.json"
        figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if code == 0:
            return Outcome("done", figures=figures)
        return Outcome("late" if code is None else "failed", figures=figures, reason=_last_line(self._log(name)))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}; ")
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


class Scripts:
    """Checks that start scripts of this repository.

    Args:
        bench: The device.
        folder: For what they write.
    """

    def __init__(self, bench: Workbench, folder: Path, rehearse: bool):
        self.bench, self.folder, self.rehearse = bench, folder, rehearse
        of_class, epochs = ("2", "1") if rehearse else ("20", "2")
        self.small = ["--num_tasks", "2", "--max_samples_per_class", of_class, "--num_train_epochs", epochs]
        self.small += ["--save_steps", "5", "--ranpac_width", "200"]
        self.small += ["--teacher", bench.teacher, "--student", bench.student] if rehearse else []
        self.environment = {"OMP_NUM_THREADS": "1", **({"ACCELERATE_USE_CPU": "true"} if rehearse else {})}

    def start(self, command: list[str], **environment: str) -> subprocess.Popen:
        known = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        print(shlex.join(command), environment, flush=True)
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, env={**known, **self.environment, **environment})

    def train(self, name: str, *more: str, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
        command = [*launcher, "recipes/train.py", *self.small, *more, "--output_dir", str(self.folder / name)]
        return self.start(command, **environment)

    def figures(self) -> dict[str, Any]:
        """The reference figures of the authors' code: how many cases pass, and their largest deviations."""
        report = self.folder / "figures.xml"
        cases = ["-k", "coda_prompt-kdp", "-n", "0"] if self.rehearse else ["-n", str(min(num_cores() // 2, 8))]
        command = ["-m", "pytest", "-q", "-m", "", "tests/test_reference_figures.py", "--junitxml", str(report)]
        self.start([*command, *cases], CDL_HF_DEVICE=str(self.bench.device)).wait()
        return _pytest_report(report)

    def gpu_tests(self) -> dict[str, Any]:
        """The tests that need a GPU."""
        report = self.folder / "gpu_tests.xml"
        self.start(["-m", "pytest", "-q", "-m", "gpu", "-n", "2", "--junitxml", str(report)]).wait()
        return _pytest_report(report)

    def runs(self) -> dict[str, Any]:
        """The same small run on CPU and GPU in each precision: losses, accuracies, and whether it repeats itself."""
        kinds = {"cpu": "no", "fp32": "no", "bf16": "bf16", "bf16 again": "bf16", "fp16": "fp16"}
        if self.rehearse:
            kinds = {"cpu": "no", "bf16": "bf16", "bf16 again": "bf16"}
        started = {}
        for kind, precision in kinds.items():
            cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "4"} if kind == "cpu" else {}
            exact = ("--allow_tf32", "false")  # so that only the precision differs from the run on the CPU
            started[kind] = self.train(kind, *exact, ACCELERATE_MIXED_PRECISION=precision, **cpu)
        figures = {kind: {"code": process.wait()} for kind, process in started.items()}
        for kind in (kind for kind, found in figures.items() if found["code"] == 0):
            figures[kind] |= _result(self.folder / kind)
        one, two = (load_file(self.folder / kind / "student" / "model.safetensors") for kind in ("bf16", "bf16 again"))
        difference = max((one[name].float() - two[name].float()).abs().max().item() for name in one)
        return {**figures, "largest difference of weights, bf16 again": difference}

    def distributed(self) -> dict[str, Any]:
        """One process as of several (NCCL, FSDP2): exit codes; SIGTERM ends a run with 75, and it is resumed."""
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
        started = {
            name: self.train(name, *more, launcher=launcher, **environment)
            for name, more, environment in (
                ("linear", ["--classifier_alignment"], {}),
                ("ranpac", ["--classifier", "ranpac"], {}),
                ("fsdp", [], {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
            )
        }
        stopped = self.train("stopped", "--num_train_epochs", "4")
        while stopped.poll() is None and not list((self.folder / "stopped" / "checkpoints").glob("[!.]*")):
            time.sleep(0.1)
        stopped.terminate()
        codes = {name: process.wait() for name, process in {**started, "stopped": stopped}.items()}
        resumed = self.start(
            ["recipes/train.py", "--output_dir", str(self.folder / "stopped"), "--resume_from_checkpoint"]
        )
        return {"exit codes": {**codes, "resumed": resumed.wait()}}

    def out_of_memory(self) -> dict[str, Any]:
        """Too large a batch in a hundredth of the GPU's memory: the message, and --auto_find_batch_size."""
        if self.bench.device.type != "cuda":
            return {"left out": "needs a GPU"}
        limit = "import runpy, sys, torch; torch.cuda.set_per_process_memory_fraction(0.01); sys.argv = sys.argv[1:]; "
        limit += "sys.path.insert(0, 'recipes'); runpy.run_path(sys.argv[0], run_name='__main__')"
        backbone = save_random(self.folder / "backbone", self.bench.student)
        call = ["-c", limit, "recipes/train.py", *self.small, "--num_tasks", "1", "--max_samples_per_class", "3"]
        call += ["--num_train_epochs", "1", "--batch_size", "256", "--teacher", backbone, "--student", backbone]
        figures = {}
        for name, more in (("plain", []), ("found", ["--auto_find_batch_size"])):
            output = ["--output_dir", str(self.folder / name)]
            done = subprocess.run([sys.executable, *call, *more, *output], cwd=ROOT, capture_output=True, text=True)
            print(done.stdout, done.stderr, flush=True)
            figures[name] = {"code": done.returncode, "message": (done.stderr.strip() or " ").splitlines()[-1][:300]}
        return figures

    def end_to_end(self) -> dict[str, Any]:
        """Images a second of a run with worker processes, from its second epoch."""
        folders = [self.bench.teacher, self.bench.student]
        if not self.rehearse:
            folders = [save_random(self.folder / name, name) for name in folders]
        of_class = "2" if self.rehearse else "80"
        more = ["--teacher", folders[0], "--student", folders[1], "--prompt_method", "coda_prompt"]
        more += [
            "--distillation",
            "kdp",
            "--num_tasks",
            "1",
            "--max_samples_per_class",
            of_class,
            "--save_steps",
            "1000",
        ]
        more += ["--num_train_epochs", "4", "--batch_size", str(self.bench.batch_sizes[0])]
        workers = "0" if self.rehearse else str(num_cores() - 1)
        code = self.train("run", *more, "--dataloader_num_workers", workers, ACCELERATE_MIXED_PRECISION="bf16").wait()
        return {"code": code, **(_result(self.folder / "run") if code == 0 else {})}


def save_random(folder: Path, name: str, **args: int) -> str:
    """Saves a timm network with random weights, which train.py takes; its folder."""
    network = timm.create_model(name, num_classes=0, **args)
    save_for_hf(network, folder, model_config={"architecture": name}, safe_serialization=True)
    return str(folder)


def _result(run: Path) -> dict[str, Any]:
    """Accuracies of a finished run, and losses and seconds of its epochs, by role."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures: dict[str, Any] = {}
    for role in ("teacher", "student"):
        epochs = [line for line in lines if line["event"] == "epoch" and role in line.values()]
        figures[role] = {
            "average_accuracy": results[role]["average_accuracy"],
            "losses": [line["loss"] for line in epochs],
            "seconds": [line["seconds"] for line in epochs],
        }
    return figures


def _pytest_report(file: Path) -> dict[str, Any]:
    """Counts, names of the failed tests, and the largest value of each property that tests have recorded."""
    root = xml.etree.ElementTree.parse(file).getroot()
    suite = root if root.tag == "testsuite" else root[0]
    figures: dict[str, Any] = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    figures["failed"] = [
        f"{case.get('name')}: {(problem.get('message') or '')[:300]}"
        for case in suite.iter("testcase")
        for problem in (*case.findall("failure"), *case.findall("error"))
    ]
    for entry in suite.iter("property"):
        name, value = entry.get("name", ""), float(entry.get("value", "nan"))
        figures[name] = max(figures.get(name, value), value)
    return figures


def pretrain(name: str, dataset: str, output: Path, deadline: float, scripts: Scripts) -> dict[str, Any]:
    """Pre-trains a network until the deadline; a transformer from the soft labels of the guide."""
    recipe, network = NETWORKS[name]
    recipe = f"{recipe} {COMMON}"
    if scripts.rehearse:
        recipe = re.sub("(?<=batch_size )[0-9]+", "8", recipe)
        network = network | ({"layers": [1, 1, 1, 1]} if name == "guide" else {"depth": 1})
    workers = "0" if scripts.rehearse else str(num_cores() // 3)
    command = ["recipes/pretrain.py", "--dataset", dataset, *recipe.split(), "--model_args", json.dumps(network)]
    command += ["--dataloader_num_workers", workers, "--output_dir", str(output / name)]
    command += [] if name == "guide" else ["--distill_from", str(output / "guide" / "network")]
    left = deadline - SAVING - time.monotonic()
    code = scripts.start([*command, "--time_limit", f"{left:.0f}"], ACCELERATE_MIXED_PRECISION="bf16").wait()
    if code != 0:
        raise RuntimeError(f"pretrain.py ended with exit code {code}")
    results = json.loads((output / name / "results.json").read_text(encoding="utf-8"))
    return {"folder": name, **{key: results[key] for key in ("test_accuracy", "epochs", "seconds")}}


def main() -> None:
    (args,) = parsed = parse((SittingArguments,), description=__doc__)
    deadline = time.monotonic() + args.time_limit if args.deadline is None else args.deadline
    output = Path(args.output_dir).resolve()
    if args.check is not None:
        (output / "figures").mkdir(exist_ok=True)
        figures = {}
        for key, value in run_check(args.check, args, output, deadline):
            figures[key] = value
            write_json(output / "figures" / f"{args.check}.json", figures)
        return
    if output.exists() and any(output.iterdir()):
        cli_error(f"output_dir {output} is not empty: give another one")
    known = TOGETHER | IN_TURN
    if unknown := set(args.only) - {"checks", "pretrain"} - known.keys():
        cli_error(f"only: {', '.join(sorted(unknown))} is none of checks, pretrain, {', '.join(known)}")
    if "pretrain" in args.only and args.dataset is None:
        cli_error("dataset is needed to pretrain; --only checks needs none")

    about = {"arguments": to_dict(parsed), "versions": versions(), "date": time.strftime("%Y-%m-%d")}
    sitting = Sitting(output, deadline, about)
    patience = 10 if args.rehearse else 1

    def command(name: str, end: float) -> list[str]:
        call = [sys.executable, str(Path(__file__).resolve()), "--check", name, "--output_dir", str(output)]
        call += ["--dataset", args.dataset] if args.dataset else []
        return [*call, "--deadline", str(end), *["--rehearse"] * args.rehearse]

    def run(names: Iterable[str], seconds: dict[str, float], end: float = deadline) -> None:
        sitting.run({name: (command(name, end), patience * seconds[name]) for name in names})

    wanted = [name for name in known if "checks" in args.only or name in args.only]
    run([name for name in wanted if name == "machine"], TOGETHER)
    first = sitting.outcomes.get("machine")
    if first is not None and first.state != "done":
        cli_error(f"the GPU cannot be used ({first.reason}); see {output / 'logs' / 'machine.log'}")
    for name in wanted:
        if name in IN_TURN:
            run([name], IN_TURN)
    run([name for name in wanted if name in TOGETHER and name != "machine"], TOGETHER)
    if "pretrain" in args.only:
        limits = {f"pretrain_{name}": args.time_limit for name in NETWORKS}
        guide, *others = limits
        seconds = GUIDE_SHARE * (deadline - time.monotonic())
        run([guide], {guide: seconds}, time.monotonic() + seconds)
        if sitting.outcomes[guide].state == "done":
            run(others, limits)
    print((output / "sitting.txt").read_text(encoding="utf-8"))


def run_check(name: str, args: SittingArguments, output: Path, deadline: float) -> Iterable[tuple[str, Any]]:
    """The figures of a check, computed in this process, each as soon as it is known."""
    work = output / "work" / name
    work.mkdir(parents=True)
    bench = Workbench(torch.device("cuda"))
    if args.rehearse:
        tiny = {"img_size": 16, "patch_size": 8, "depth": 6, "num_heads": 2}
        teacher, student = (
            save_random(work / f"tiny_{role}", "vit_tiny_patch16_224", embed_dim=width, **tiny)
            for role, width in (("teacher", 128), ("student", 112))
        )
        bench = Workbench(torch.device("cpu"), teacher, student, batch_sizes=(4,), repeats=1, ranpac_widths=(20,))
    if name in CHECKS:
        return CHECKS[name](bench)
    scripts = Scripts(bench, work, args.rehearse)
    network = name.removeprefix("pretrain_")
    if network in NETWORKS:
        assert args.dataset is not None
        return pretrain(network, args.dataset, output, deadline, scripts).items()
    checks = {check.__name__: check for check in (scripts.figures, scripts.gpu_tests, scripts.runs)}
    checks |= {check.__name__: check for check in (scripts.distributed, scripts.out_of_memory, scripts.end_to_end)}
    return checks[name]().items()


if __name__ == "__main__":
    main()
