"""The folder a run leaves: arguments, metrics, results, pictures, teacher and student."""

import json
import os
import secrets
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from ..escaping import portable
from ..evaluation import AccuracyMatrix, tasks_of
from ..utils import atomic_write, remove, write_json, write_text
from . import lock
from .checkpointing import STATE, list_checkpoints
from .distributed import raise_on_all_ranks
from .lock import FolderInUse, RunLock

ARGUMENTS, GIVEN, METRICS, RESULTS = "args.yaml", "args_given.json", "metrics.jsonl", "results.json"
# What a run leaves; a file's name begins with a dot while it is being written.
_PICTURES = {"accuracy.png", "matrices.png", "online.png"}
_FILES = {ARGUMENTS, GIVEN, METRICS, RESULTS, *_PICTURES, "split.yaml", "images.npz", "writable"}
_FOLDERS = {"checkpoints", "states", "teacher", "student", "logs"}
_OF_THE_SYSTEM = {lock.NAME, ".DS_Store", "Thumbs.db", "desktop.ini"}  # they neither fill a folder nor are strange
# By these words a run's files are known from those of other programs, in folders of versions that had no lock.
_SIGNS = {ARGUMENTS: ("prompt_method:", "distillation:"), RESULTS: ('"prompt_method"', '"distillation"')}


class RunFolder:
    """Paths of a run and what is written to them, by the main process only. No other run gets in before [`close`].

    Args:
        path: The folder.
        overwrite: Whether to remove what an earlier run has left in it.
        resume: Whether to continue an earlier run.
        is_new: Whether it must not be there yet.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False, is_new: bool = False):
        self.path, self.overwrite, self.resume, self.is_new = path, overwrite, resume, is_new
        self.processes, self.checkpoints = _processes(), path / "checkpoints"

    @classmethod
    def open(cls, output_dir: str | None, name: str, *, overwrite: bool = False, resume: bool = False) -> "RunFolder":
        """The folder `output_dir`, or a new one under `runs/` that carries `name`, the time and random characters.

        One with a run in it that is to be replaced or resumed is locked; else nothing is written.

        Raises:
            ValueError: It is a file, another run is at work in it, or it holds something and neither `overwrite` nor
                `resume` is set; what is to be removed or resumed was never a run's.
        """
        is_new = output_dir is None
        if output_dir is None:
            output_dir = f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            _processes()  # they must know of each other
            (output_dir,) = broadcast_object_list([output_dir])  # one folder, on every process
        folder = cls(Path(output_dir).expanduser(), overwrite=overwrite, resume=resume, is_new=is_new)
        with raise_on_all_ranks():
            if folder.processes.is_main_process:
                folder._check()
        return folder

    def create(self) -> "RunFolder":
        """Makes and locks the folder, empty where it is to be overwritten; called when all that may be wrong is right.

        Raises:
            ValueError: It cannot be written to, another run was faster, or it holds what no run has left.
        """
        with raise_on_all_ranks():
            if self.processes.is_main_process:
                self._make()
        return self

    def close(self) -> None:
        """Lets other runs in; the end of the process does so as well."""
        if self.processes.is_main_process and self.path.is_dir():
            RunLock(self.path).release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check(self) -> None:
        path = self.path
        try:
            if path.exists() and not path.is_dir():
                raise ValueError(f"output_dir {path} is a file; name a folder")
            if self.resume and not self._was_a_run():
                raise ValueError(f"there is nothing to resume in {path}: no run has begun there")
            if self._entries() and not (self.overwrite or self.resume):
                raise ValueError(
                    f"output_dir {path} is not empty; choose another, or pass --overwrite_output_dir or "
                    "--resume_from_checkpoint"
                )
            if self._entries() and self.overwrite:
                self._check_that_it_may_be_cleared()
            if self._entries():
                self._lock()
        except OSError as error:  # no right to look into it, a name too long
            raise ValueError(f"output_dir {path} cannot be used: {error.strerror}") from error

    def _make(self) -> None:
        try:
            if self.is_new:
                self.path.mkdir(parents=True)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            if self._entries() and not self.resume:  # perhaps only now
                if not self.overwrite:
                    raise ValueError(f"output_dir {self.path} is no longer empty: another run was faster")
                self._check_that_it_may_be_cleared()
                for entry in self._entries():
                    remove(entry)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink()
        except FileExistsError as error:
            raise ValueError(
                f"output_dir {self.path} is there already: another run was faster, start again"
            ) from error
        except OSError as error:
            raise ValueError(f"output_dir {self.path} cannot be written to: {error.strerror}") from error

    def _lock(self) -> None:
        try:
            RunLock(self.path).acquire()
        except FolderInUse as error:
            raise ValueError(f"output_dir {self.path} is in use: {error}; let it end, or choose another") from error

    def _entries(self) -> list[Path]:
        """What is in the folder; what shows that it was a run's comes last, for that is removed last."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        return sorted((entry for entry in entries if entry.name not in _OF_THE_SYSTEM), key=lambda e: e.name in _SIGNS)

    def _was_a_run(self) -> bool:
        if (self.path / lock.NAME).is_file():
            return True
        if any((path / STATE).is_file() for path in list_checkpoints(self.checkpoints)):
            return True
        for name, words in _SIGNS.items():
            file = self.path / name
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            if all(word in text for word in words):
                return True
        return False

    def _check_that_it_may_be_cleared(self) -> None:
        """What a run leaves is removed and nothing else, so that a wrong --output_dir costs no one their files."""
        names = [entry.name for entry in self._entries()]
        strange = sorted(name for name in names if name.removeprefix(".") not in _FILES | _FOLDERS)
        if strange:
            raise ValueError(
                f"output_dir {self.path} holds what no run has left ({', '.join(strange[:5])}); nothing was removed"
            )
        if not self._was_a_run():
            raise ValueError(
                f"output_dir {self.path} was never a run's, although it has {', '.join(sorted(names)[:5])}: it has no "
                f"{ARGUMENTS} of a run; nothing was removed"
            )

    def write_arguments(self, given: Mapping[str, Any], resolved_yaml: str) -> None:
        """The arguments as resolved, and as given when the run began: a resumed one keeps the latter."""
        if self.processes.is_main_process:
            write_text(self.path / ARGUMENTS, resolved_yaml)
            if not (self.resume and self.given() is not None):
                write_json(self.path / GIVEN, given)

    def given(self) -> dict[str, Any] | None:
        """The arguments as given when the run began; None if there is no record of them, or a damaged one."""
        record = self.path / GIVEN
        if not record.is_file():
            return None
        try:
            given = json.loads(record.read_text(encoding="utf-8"))
            if isinstance(given, dict) and isinstance(given.get("command_line"), list):
                return given
        except ValueError:
            pass
        warnings.warn(f"{record} is damaged: with which command the run began is not known", stacklevel=2)
        return None

    def write_split(self, split_list: str | None) -> None:
        """The list of training images that `--split_file` takes, where the images were divided for this run."""
        if self.processes.is_main_process and split_list is not None:
            write_text(self.path / "split.yaml", split_list)

    def write_images(self, content: bytes) -> None:
        """Which images the run has for what, from [`RunImages.content`]."""
        if self.processes.is_main_process:
            with atomic_write(self.path / "images.npz") as file:  # whose format has checksums
                file.write(content)

    def log(self, **values: Any) -> None:
        """Adds a line to `metrics.jsonl`."""
        if self.processes.is_main_process:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def logged_bytes(self) -> int:
        """Length of `metrics.jsonl`, on disk: what a checkpoint remembers, so that a resumed run repeats no line."""
        try:
            with (self.path / METRICS).open("rb+") as file:
                os.fsync(file.fileno())
                return file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def cut_log(self, length: int) -> None:
        """Removes the lines that were written after a checkpoint; warns where lines before it are lost."""
        metrics = self.path / METRICS
        if not self.processes.is_main_process:
            return
        there = metrics.stat().st_size if metrics.exists() else 0
        if there < length:
            warnings.warn(
                f"{metrics} is {length - there} bytes shorter than at the last checkpoint: lines of it are lost",
                stacklevel=2,
            )
            length = there and metrics.read_bytes().rfind(b"\n") + 1  # the next line must not go on with half a one
        if there:
            os.truncate(metrics, length)

    @property
    def is_finished(self) -> bool:
        """Whether the run has left its results, which it writes last."""
        return (self.path / RESULTS).is_file()

    def write_pictures(self, results: Mapping[str, Any], matrices: Mapping[str, AccuracyMatrix]) -> None:
        """`accuracy.png` and `matrices.png`; `online.png` where models were tested while they learned."""
        from ..evaluation import plots  # matplotlib takes a second

        if self.processes.is_main_process:
            stream, args = results["stream"], results["args"]
            prompts = args["prompt_method"] if args["prompt_method"] != "none" else "no"
            title = f"{portable(stream['source'] or 'images')}: {prompts} prompts"  # a picture that is pushed
            if "student" in matrices:
                title += f", distillation {args['distillation']}"
            if args["classifier"] != "linear":
                title += f", head {args['classifier']}"
            domains = stream.get("domains")
            classes = None if domains or "blurry" in stream else stream["classes_per_task"]
            options: dict[str, Any] = {"classes_per_task": classes, "tasks": tasks_of(stream)}
            plots.plot_accuracy_over_tasks(matrices, self.path / "accuracy.png", title, **options)
            plots.plot_accuracy_matrices(matrices, self.path / "matrices.png", domains)
            online = {role: curve for role in matrices if (curve := results.get(role, {}).get("online_accuracy"))}
            if online:
                plots.plot_online_accuracy(online, self.path / "online.png", title)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """`results.json`, the last of all files: where it is, the run is finished."""
        if self.processes.is_main_process:
            write_json(self.path / RESULTS, results)


def _processes() -> PartialState:
    """The group of processes; unlike an Accelerator it does not look for the launcher's `ACCELERATE_USE_CPU`."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
