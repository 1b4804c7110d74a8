"""Pushing of finished runs to the Hub, as repositories `<name>-teacher` and `<name>-student`."""

import json
import re
import shlex
import tempfile
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx, validate_repo_id
from safetensors import SafetensorError, safe_open

from ..invocation import how_to_start
from ..models import PromptViTForImageClassification
from ..models.growth import STATISTICS_NAME
from ..runs.model_card import PICTURES
from ..runs.task_checkpoints import TaskCheckpoints
from ..utils import DamagedFile, verify, write_text
from .learned_models import RECORD

ROLES = ("teacher", "student")
# Files of a repository, in addition to the weights: of every model, of a run's, of one that has learned afterwards.
FILES = ("config.json", "preprocessor_config.json", "README.md")
FILES_OF_RUN = (*FILES, "results.json", *PICTURES)
FILES_OF_LEARNED = (*FILES, RECORD)
# Errors of huggingface_hub on uploading: an error response or no response (HTTPError), no login or unreadable files
# (OSError), invalid names (ValueError), its storage (RuntimeError).
UPLOAD_ERRORS = (httpx.HTTPError, OSError, ValueError, RuntimeError)


class PushError(RuntimeError):
    """A push that failed; the message gives the reason and the command to try again."""


def check_ready(run: Path, name: str | None) -> None:
    """Checks before a run, without asking the Hub, that it can be pushed afterwards.

    Raises:
        ValueError: The name is not valid on the Hub, or no user is logged in.
    """
    _check_name(run, name)
    if get_token() is None:
        raise ValueError("push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN")


def push_run(
    run: Path,
    name: str | None = None,
    *,
    private: bool = False,
    task_revisions: bool = False,
    api: HfApi | None = None,
) -> dict[str, str]:
    """Pushes the folders `teacher/` and `student/` of a run: the models with their cards, results and pictures.

    A push may be repeated: files that are already on the Hub are not sent again. In the cards, the name of the
    repository replaces that of the folder.

    Args:
        run: Output folder of a finished run.
        name: `owner/name`, or `name` for the logged-in user; by default the name of the folder.
        private: Whether new repositories are private.
        task_revisions: Whether to also push the model after each task, as branches `task-01`, ....
        api: Client of the Hub; by default with the token of `hf auth login`.

    Returns:
        Role -> address of its repository.

    Raises:
        ValueError: The run is not finished or damaged, or the name is not valid on the Hub.
        PushError: The upload failed.
    """
    roles = _whole_models(run, task_revisions)
    name = _check_name(run, name)
    api, addresses = api or HfApi(), {}
    for role in roles:
        try:
            addresses[role] = _push(run, role, f"{name}-{role}", private, task_revisions, api)
        except UPLOAD_ERRORS as error:
            done = "".join(f" The {other} is at {address}." for other, address in addresses.items())
            raise PushError(
                f"{name}-{role} could not be pushed to the Hub: {_reason(error)}.{done} Everything is still in {run}; "
                f"to try again: {_command(run, name, private, task_revisions)}"
            ) from error
    return addresses


def _check_name(run: Path, name: str | None) -> str:
    name = run.resolve().name if name is None else name
    for role in ROLES:
        validate_repo_id(f"{name}-{role}")
    return name


def _whole_models(run: Path, with_states: bool) -> list[str]:
    """Roles of the models of a run, after checking that all their files exist and can be read.

    Raises:
        ValueError: The run is not finished, or a file is missing or damaged.
    """
    results: dict[str, Any] = {}
    files: tuple[str, ...]
    if (run / RECORD).is_file():
        roles, files = _learned_roles(run, with_states), FILES_OF_LEARNED
    else:
        if not (run / "results.json").is_file():
            raise ValueError(f"there is no finished run in {run}: it has no results.json, which is written at its end")
        results, files = _read_json(run / "results.json"), FILES_OF_RUN
        roles = [role for role in ROLES if isinstance(results.get(role), dict)]
        if not roles:
            raise ValueError(f"{run / 'results.json'} is damaged: it has results of neither teacher nor student")
    for role in roles:
        folder = run / role
        index = folder / "model.safetensors.index.json"
        shards = _read_json(index).get("weight_map", {}).values() if index.is_file() else ()
        weights = sorted(set(shards)) or ["model.safetensors"]
        missing = [name for name in (*files, *weights) if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} is incomplete, and nothing was pushed: {', '.join(missing)} is missing")
        for name in files:
            if name.endswith(".json"):
                _read_json(folder / name)
        states = _states_to_push(run, role, results) if with_states else []
        for file in (*(folder / name for name in weights), *states):
            try:
                verify(file)
                with safe_open(file, "pt"):
                    pass
            except DamagedFile as error:
                raise ValueError(f"{error}; nothing was pushed") from error
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{file} is damaged, and nothing was pushed: {error}") from error
    return roles


def _learned_roles(folder: Path, with_states: bool) -> list[str]:
    """Roles of the models in a folder that `cdl-hf learn` has written.

    Raises:
        ValueError: It is a single model, or states after each task are asked for.
    """
    roles = [role for role in ROLES if (folder / role).is_dir()]
    if not roles:
        raise ValueError(
            f"{folder} is one model, not a run with its teacher or student: push it with `hf upload NAME {folder} "
            f"--exclude {STATISTICS_NAME}`"
        )
    if with_states:
        raise ValueError(f"{folder} has no models after each task: push without --hub_task_revisions")
    return roles


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, and nothing was pushed: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged, and nothing was pushed: it is not a JSON object")
    return content


def _states_to_push(run: Path, role: str, results: dict[str, Any]) -> list[Path]:
    """Checkpoints of a model after each task; none if the model was taken from another run.

    Raises:
        ValueError: The checkpoint of a task is missing.
    """
    tasks = len(results[role].get("accuracy_matrix", ()))
    files = [TaskCheckpoints(run, role).path(task) for task in range(tasks)]
    missing = [file for file in files if not file.is_file()]
    if len(missing) == tasks and results.get("args", {}).get(f"{role}_run") is not None:
        return []
    if missing:
        raise ValueError(
            f"{missing[0]} is missing, so there can be no revision for each task; push without --hub_task_revisions"
        )
    return files


def _push(run: Path, role: str, name: str, private: bool, task_revisions: bool, api: HfApi) -> str:
    repository = api.create_repo(name, private=private, exist_ok=True).repo_id
    about = api.model_info(repository)
    files = {file.rfilename for file in about.siblings or ()} - {".gitattributes"}
    if files and not files & {"results.json", RECORD}:
        raise ValueError("the name is taken by another repository; choose another one with --hub_model_id")
    if private and not about.private:
        raise ValueError(
            "it exists already and is public, not private; change that on its page, or choose another name"
        )
    states = TaskCheckpoints(run, role)
    tasks = len(list(states.path(0).parent.glob("task_*.safetensors"))) if task_revisions else 0
    _name_repository(run / role / "README.md", repository, tasks)
    message = f"The {role} after all it has learned"
    api.upload_folder(
        repo_id=repository,
        folder_path=run / role,
        commit_message=message,
        ignore_patterns=[STATISTICS_NAME],  # large, and of use only to who goes on with the run
        delete_patterns=list(_of_another_push(run / role)),
    )
    if (run / role / RECORD).is_file():
        _warn_of_branches(repository, api)
    if tasks:
        _push_tasks(run / role, states, tasks, repository, api)
    return f"{api.endpoint}/{repository}"


def _of_another_push(folder: Path) -> set[str]:
    """Files that an earlier push may have left in the repository, and that do not describe the model of a folder."""
    return {*FILES_OF_RUN, *FILES_OF_LEARNED} - {file.name for file in folder.iterdir()}


def _warn_of_branches(repository: str, api: HfApi) -> None:
    """Warns of the models after each task in the repository of a model that has learned or forgotten since."""
    branches = [ref.name for ref in api.list_repo_refs(repository).branches if re.fullmatch(r"task-\d+", ref.name)]
    if branches:
        warnings.warn(
            f"{repository} still has the models after each task of its run, with all classes that they knew: if they "
            f"should not be there, delete the branches {', '.join(sorted(branches))}",
            stacklevel=2,
        )


def _push_tasks(folder: Path, states: TaskCheckpoints, tasks: int, repository: str, api: HfApi) -> None:
    """Pushes the model after each task as a branch, with all other files from the main branch."""
    model = PromptViTForImageClassification.from_pretrained(folder)
    class_names = list(model.config.id2label.values())
    for task in range(tasks):
        states.load(task, model)
        model.config.tasks_seen = task + 1
        model.config.id2label = dict(enumerate(class_names[: model.config.seen_classes]))
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
        branch, message = f"task-{task + 1:02d}", f"After {task + 1} of {tasks} tasks"
        api.create_branch(repository, branch=branch, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            api.upload_folder(repo_id=repository, folder_path=place, revision=branch, commit_message=message)


def _name_repository(card: Path, repository: str, tasks: int) -> None:
    """Writes the name of the repository into the code of the card; the rest of the card may have been edited."""
    comment = f'  # add revision="task-01" for the model after the first of {tasks} tasks' if tasks else ""
    text = card.read_text(encoding="utf-8")
    text = re.sub(r'^checkpoint = ".*$', f'checkpoint = "{repository}"{comment}', text, count=1, flags=re.MULTILINE)
    write_text(card, text)


def _reason(error: Exception) -> str:
    """Reason of an upload error, without a full stop."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, httpx.TransportError):
        return f"the Hub cannot be reached ({error})"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "you are not logged in, or your token is not valid: run `hf auth login`, or set HF_TOKEN"
        if status == 403:
            return "no write access: the name belongs to someone else, or your token is read-only"
        return f"the Hub returned {status} ({error.server_message or 'no reason given'})"
    return " ".join(str(error).split()).rstrip(".")


def _command(run: Path, name: str, private: bool, task_revisions: bool) -> str:
    words = [*how_to_start("push"), str(run), "--hub_model_id", name]
    words += ["--hub_private"] * private + ["--hub_task_revisions"] * task_revisions
    return shlex.join(words)
