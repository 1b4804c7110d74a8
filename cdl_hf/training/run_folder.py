"""The folder a run leaves: arguments, metrics, results, pictures, teacher and student."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from ..escaping import portable
from ..evaluation import AccuracyMatrix
from .agreement import together
from .checkpointing import write_json, write_whole

ARGUMENTS = "args.yaml"


class RunFolder:
    """Paths of a run and what is written to them, by the main process only.

    Args:
        path: The folder.
        overwrite: Whether to remove what an earlier run has left in it.
    """

    def __init__(self, path: Path, overwrite: bool = False):
        self.path, self.overwrite, self.processes = path, overwrite, _processes()
        self.checkpoints = path / "checkpoints"

    @classmethod
    def open(cls, output_dir: str | None, name: str, *, overwrite: bool = False, resume: bool = False) -> "RunFolder":
        """The folder `output_dir`, or a new one under `runs/` that carries `name` and the time; nothing is written.

        Raises:
            ValueError: It is a file, or holds something and neither `overwrite` nor `resume` is set; or there is
                nothing to resume.
        """
        if output_dir is None:
            output_dir = f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"
            _processes()  # they must know of each other
            (output_dir,) = broadcast_object_list([output_dir])  # one second, one folder, on every process
        path = Path(output_dir)
        folder = cls(path, overwrite)
        try:
            if path.exists() and not path.is_dir():
                raise ValueError(f"output_dir {path} is a file; name a folder")
            if resume and not (path / ARGUMENTS).is_file():
                raise ValueError(f"there is nothing to resume in {path}: no run has begun there")
            if folder._is_filled() and not (overwrite or resume):
                raise ValueError(f"output_dir {path} is not empty; choose another, or pass --overwrite or --resume")
        except OSError as error:  # no right to look into it, a name too long
            raise ValueError(f"output_dir {path} cannot be used: {error.strerror}") from error
        return folder

    def create(self) -> "RunFolder":
        """Makes the folder, empty where it is to be overwritten; called when all else that may be wrong is right.

        Raises:
            ValueError: It cannot be written to, or holds what no run has left.
        """
        self.processes.wait_for_everyone()  # all have looked into the folder before one writes
        with together():
            if self.processes.is_main_process:
                self._make()
        return self

    def _make(self) -> None:
        try:
            if self.overwrite and self._is_filled():
                self._clear()
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink()
        except OSError as error:
            raise ValueError(f"output_dir {self.path} cannot be written to: {error.strerror}") from error

    def _is_filled(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def _clear(self) -> None:
        """Removes what a run leaves and nothing else, so that a wrong --output_dir costs no one their files.

        Of a run that was killed, a file's name may begin with the dot of one that is being written.
        """
        names = {
            ARGUMENTS,
            "args_given.json",
            "metrics.jsonl",
            "results.json",
            "accuracy.png",
            "matrices.png",
            "split.yaml",
            "images.npz",
            "writable",
        }
        folders = {"checkpoints", "states", "teacher", "student", "logs"}
        strange = sorted(p.name for p in self.path.iterdir() if p.name.removeprefix(".") not in names | folders)
        if strange:
            raise ValueError(
                f"output_dir {self.path} holds what no run has left ({', '.join(strange[:5])}); nothing was removed"
            )
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def write_arguments(self, given: dict[str, Any], resolved_yaml: str) -> None:
        if self.processes.is_main_process:
            write_json(self.path / "args_given.json", given)
            write_whole(self.path / ARGUMENTS, resolved_yaml)

    def write_split(self, split_list: str | None) -> None:
        """The list of training images that `--split_file` takes, where the images were divided for this run."""
        if self.processes.is_main_process and split_list is not None:
            write_whole(self.path / "split.yaml", split_list)

    def write_images(self, content: bytes) -> None:
        """Which images the run has for what, from [`RunImages.content`]."""
        if self.processes.is_main_process:
            temporary = self.path / ".images.npz"
            temporary.write_bytes(content)
            temporary.replace(self.path / "images.npz")

    def log(self, **values: Any) -> None:
        """Adds a line to `metrics.jsonl`."""
        if self.processes.is_main_process:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def logged_bytes(self) -> int:
        """Length of `metrics.jsonl`: what a checkpoint remembers, so that a resumed run repeats no line."""
        metrics = self.path / "metrics.jsonl"
        return metrics.stat().st_size if metrics.exists() else 0

    def cut_log(self, length: int) -> None:
        """Removes the lines that were written after a checkpoint."""
        metrics = self.path / "metrics.jsonl"
        if self.processes.is_main_process and metrics.exists():
            with metrics.open("r+b") as file:
                file.truncate(length)

    def write_results(self, results: dict[str, Any], matrices: dict[str, AccuracyMatrix]) -> None:
        """`results.json` and the pictures."""
        from ..evaluation.plots import plot_accuracy_matrices, plot_accuracy_over_tasks  # matplotlib takes a second

        if self.processes.is_main_process:
            write_json(self.path / "results.json", results)
            stream, args = results["stream"], results["args"]
            prompts = args["prompt_method"] if args["prompt_method"] != "none" else "no"
            title = f"{portable(stream['source'] or 'images')}: {prompts} prompts"  # a picture that is pushed
            if "student" in matrices:
                title += f", distillation {args['distillation']}"
            if args["head"] != "linear":
                title += f", head {args['head']}"
            plot_accuracy_over_tasks(
                matrices, self.path / "accuracy.png", title, classes_per_task=stream["classes_per_task"]
            )
            plot_accuracy_matrices(matrices, self.path / "matrices.png")


def _processes() -> PartialState:
    """The group of processes; unlike an Accelerator it does not look for the launcher's `ACCELERATE_USE_CPU`."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
