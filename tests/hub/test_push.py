"""Finished runs go to the Hub; where they cannot, everything stays and the user is told what to do."""

import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

import cdl_hf.hub.push as push_module
from cdl_hf.evaluation import plots
from cdl_hf.hub.push import PushError, push_run
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.runs.folder import RunFolder

RECIPES = Path(__file__).parents[2] / "recipes"
TOKEN = "hf_" + "t0kEn" * 7


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def call(patch, name, *arguments):
    patch.setattr(sys, "argv", [f"recipes/{name}.py", *map(str, arguments)])
    recipe(name)()


@pytest.fixture(scope="module")
def run_arguments(pair, drawings):
    teacher, student = pair
    return [
        *("--dataset", drawings, "--teacher", teacher, "--student", student, "--num_tasks", "3"),
        *("--pool_size", "6", "--num_train_epochs", "1", "--batch_size", "8", "--distillation", "kdp"),
    ]


@pytest.fixture(scope="module")
def finished(run_arguments, tmp_path_factory):
    """A finished run, which the tests copy."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "train", *run_arguments, "--output_dir", folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "my_run"))


class FakeHub:
    """Repositories as dictionaries: name -> branch -> path -> content."""

    endpoint = "https://huggingface.co"

    def __init__(self):
        self.repositories, self.private = {}, {}

    def create_repo(self, repo_id, *, private, exist_ok):
        name = repo_id if "/" in repo_id else f"me/{repo_id}"
        if name not in self.repositories:
            self.repositories[name], self.private[name] = {"main": {".gitattributes": b""}}, private
        assert exist_ok
        return SimpleNamespace(repo_id=name)

    def model_info(self, repo_id):
        files = [SimpleNamespace(rfilename=name) for name in self.repositories[repo_id]["main"]]
        return SimpleNamespace(siblings=files, private=self.private[repo_id])

    def create_branch(self, repo_id, *, branch, exist_ok):
        assert exist_ok
        branches = self.repositories[repo_id]
        branches.setdefault(branch, dict(branches["main"]))

    def list_repo_refs(self, repo_id):
        return SimpleNamespace(branches=[SimpleNamespace(name=name) for name in self.repositories[repo_id]])

    def upload_folder(
        self, *, repo_id, folder_path, commit_message, revision="main", ignore_patterns=(), delete_patterns=()
    ):
        branch = self.repositories[repo_id][revision]
        for name in list(filter_repo_objects(branch, allow_patterns=list(delete_patterns))) if delete_patterns else ():
            del branch[name]
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        files = {name: files[name] for name in filter_repo_objects(files, ignore_patterns=list(ignore_patterns))}
        branch.update(files)


def download(files, folder):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_models_that_have_learned_since_their_run_are_pushed(run, tmp_path):
    for role in ("teacher", "student"):
        (run / role / "learned.json").write_text("{}")
        for name in ("results.json", "accuracy.png", "matrices.png"):
            (run / role / name).unlink()
    (run / "results.json").unlink()
    (run / "learned.json").write_text("{}")
    hub = FakeHub()
    assert list(push_run(run, "drawings", api=hub)) == ["teacher", "student"]
    assert list(push_run(run, "drawings", api=hub)) == ["teacher", "student"]  # its own repository is known again
    assert "learned.json" in hub.repositories["me/drawings-student"]["main"]
    with pytest.raises(ValueError, match="no models after each task: push without --hub_task_revisions"):
        push_run(run, "drawings", api=hub, task_revisions=True)
    (run / "student" / "learned.json").unlink()
    with pytest.raises(ValueError, match="incomplete, and nothing was pushed: learned.json is missing"):
        push_run(run, "drawings", api=hub)
    shutil.copy(run / "learned.json", run / "teacher")
    with pytest.raises(ValueError, match="is one model, not a run .* --exclude statistics.safetensors"):
        push_run(run / "teacher", "drawings", api=hub)


def test_a_push_leaves_no_file_of_an_earlier_one(run):
    hub, folder = FakeHub(), run / "student"
    shutil.rmtree(run / "teacher")
    hub.create_repo("me/drawings-student", private=False, exist_ok=True)
    main = hub.repositories["me/drawings-student"]["main"]
    main.update({"results.json": b"", "accuracy.png": b"", "matrices.png": b"", "notes.txt": b"mine"})
    hub.create_branch("me/drawings-student", branch="task-01", exist_ok=True)
    of_run = {name: (folder / name).read_bytes() for name in ("results.json", "accuracy.png", "matrices.png")}
    for name in of_run:
        (folder / name).unlink()
    for file in (run / "learned.json", folder / "learned.json"):
        file.write_text("{}")
    with pytest.warns(UserWarning, match="still has the models after each task .* delete the branches task-01"):
        push_run(run, "me/drawings", api=hub)
    assert "learned.json" in main and "notes.txt" in main and not of_run.keys() & main.keys()

    results = json.loads((run / "results.json").read_text())
    del results["teacher"]
    (run / "results.json").write_text(json.dumps(results))
    for name, content in of_run.items():
        (folder / name).write_bytes(content)
    for file in (run / "learned.json", folder / "learned.json"):
        file.unlink()
    push_run(run, "me/drawings", api=hub)
    assert "learned.json" not in main and of_run.items() <= main.items()


def test_two_repositories(run, tmp_path):
    hub = FakeHub()
    (run / "student" / "statistics.safetensors").write_bytes(b"of use here only")
    assert push_run(run, "drawings", private=True, api=hub) == {
        "teacher": "https://huggingface.co/me/drawings-teacher",
        "student": "https://huggingface.co/me/drawings-student",
    }
    assert hub.private == {"me/drawings-teacher": True, "me/drawings-student": True}
    for role in ("teacher", "student"):
        branches = hub.repositories[f"me/drawings-{role}"]
        assert list(branches) == ["main"]
        files = branches["main"]
        assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "results.json"} <= set(
            files
        )
        assert "statistics.safetensors" not in files
        assert {"accuracy.png", "matrices.png", "modeling_prompt_vit.py"} <= set(files)
        assert json.loads(files["results.json"])["student"]["accuracy_matrix"]
        assert f'checkpoint = "me/drawings-{role}"\n' in files["README.md"].decode()
        for path in (run.parent, run):  # neither the machine's folders nor a token
            assert not any(str(path).encode() in content for content in files.values())
    push_run(run, "drawings", private=True, api=hub)  # once more: what is ours may be replaced


def test_a_revision_a_task(run, tmp_path):
    hub = FakeHub()
    push_run(run, "me/drawings", task_revisions=True, api=hub)
    branches = hub.repositories["me/drawings-student"]
    assert list(branches) == ["main", "task-01", "task-02", "task-03"]
    assert 'checkpoint = "me/drawings-student"  # add revision="task-01"' in branches["main"]["README.md"].decode()
    for task in (1, 2, 3):
        folder = download(branches[f"task-{task:02d}"], tmp_path / str(task))
        model = PromptViTForImageClassification.from_pretrained(folder)
        assert list(model.config.id2label.values()) == [f"class_{i}" for i in range(2 * task)]
        state = load_file(run / "states" / "student" / f"task_{task - 1:03d}.safetensors")
        assert all(tensor.equal(model.state_dict()[name]) for name, tensor in state.items())
        assert (folder / "README.md").is_file() and (folder / "preprocessor_config.json").is_file()


def test_a_card_edited_by_hand_stays_as_it_is(run):
    card = run / "student" / "README.md"
    card.write_text(card.read_text().replace("# How", "# My own words\n\nHow"))
    before = card.read_text()
    push_run(run, "me/drawings", api=FakeHub())
    assert card.read_text() == before.replace(
        'checkpoint = "student"  # this folder, or the name of the repository that holds it',
        'checkpoint = "me/drawings-student"',
    )


def test_the_name_is_the_folders_if_not_given(run):
    hub = FakeHub()
    push_run(run, api=hub)
    assert set(hub.repositories) == {"me/my_run-teacher", "me/my_run-student"}


def test_a_name_that_holds_something_else(run):
    hub = FakeHub()
    hub.create_repo("me/drawings-student", private=False, exist_ok=True)
    hub.repositories["me/drawings-student"]["main"]["pytorch_model.bin"] = b"years of work"
    with pytest.raises(
        PushError, match="drawings-student could not be .* name is taken .* The teacher is at https://"
    ) as error:
        push_run(run, "me/drawings", api=hub)
    assert f"cdl-hf push {run} --hub_model_id me/drawings" in str(error.value)
    assert set(hub.repositories["me/drawings-student"]["main"]) == {".gitattributes", "pytorch_model.bin"}


def test_what_is_to_be_private_is_not_added_to_what_is_public(run):
    hub = FakeHub()
    push_run(run, "me/drawings", api=hub)
    with pytest.raises(PushError, match="is public, not private.*--hub_private"):
        push_run(run, "me/drawings", private=True, api=hub)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "results.json").unlink(), "there is no finished run"),
        (lambda run: (run / "results.json").write_text("{}"), "neither teacher nor student"),
        (lambda run: (run / "results.json").write_text('{"teacher": '), "results.json is damaged"),
        (
            lambda run: shutil.rmtree(run / "student"),
            "student is incomplete, .* config.json, .*model.safetensors is missing",
        ),
        (lambda run: (run / "student" / "README.md").unlink(), "README.md is missing"),
        (lambda run: (run / "teacher" / "accuracy.png").unlink(), "accuracy.png is missing"),
        (lambda run: (run / "student" / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda run: os.truncate(run / "student" / "model.safetensors", 5000), "model.safetensors is damaged"),
        (lambda run: flip_a_bit(run / "teacher" / "model.safetensors"), "does not fit the checksum .* nothing was"),
        (lambda run: (run / "student" / "model.safetensors.index.json").write_text("x"), "index.json is damaged"),
        (lambda run: os.truncate(run / "states" / "student" / "task_001.safetensors", 99), "task_001.* is damaged"),
        (lambda run: (run / "states" / "teacher" / "task_002.safetensors").unlink(), "without --hub_task_revisions"),
        (lambda run: shutil.rmtree(run / "states"), "task_000.safetensors is missing"),
    ],
)
def test_of_a_run_that_is_not_whole_nothing_is_pushed(run, damage, told):
    damage(run)
    hub = FakeHub()
    with pytest.raises(ValueError, match=told):
        push_run(run, "me/drawings", task_revisions=True, api=hub)
    assert not hub.repositories


def test_pictures_name_no_folder_of_the_machine(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "plot_accuracy_over_tasks", lambda matrices, path, title, **_: titles.append(title))
    monkeypatch.setattr(plots, "plot_accuracy_matrices", lambda *_: None)
    for source in ("/home/anna/images", None):
        stream = {"source": source, "classes_per_task": [2]}
        args = {"prompt_method": "l2p", "distillation": "kd", "classifier": "linear"}
        RunFolder(tmp_path).write_pictures({"stream": stream, "args": args}, {"student": None})
    assert titles == ["images: l2p prompts, distillation kd"] * 2


@pytest.fixture
def answering(monkeypatch):
    """A server that answers every request with one status, in place of the Hub."""
    servers = []

    def start(status):
        class Answer(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=TOKEN)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "you are not logged in, or your token is not valid: run `hf auth login`"),
        (403, "no write access: the name belongs to someone else, or your token is read-only"),
        (400, "the Hub returned 400"),
    ],
)
def test_the_hub_refuses(run, answering, status, reason):
    before = snapshot(run)
    with pytest.raises(PushError) as error:
        push_run(run, "them/drawings", private=True, task_revisions=True, api=answering(status))
    assert f"them/drawings-teacher could not be pushed to the Hub: {reason}" in str(error.value)
    command = f"cdl-hf push {run} --hub_model_id them/drawings --hub_private --hub_task_revisions"
    assert str(error.value).endswith(f"Everything is still in {run}; to try again: {command}")
    assert snapshot(run) == before and TOKEN not in str(error.value)


def test_no_network(run, answering):
    api = answering(200)
    api.endpoint = "http://127.0.0.1:1"  # nobody listens there
    with pytest.raises(PushError, match="the Hub cannot be reached"):
        push_run(run, "me/drawings", api=api)


def test_push_recipe(run, monkeypatch, capsys):
    hub = FakeHub()
    monkeypatch.setattr(push_module, "HfApi", lambda: hub)
    call(monkeypatch, "push", run, "--hub_model_id", "me/drawings")
    assert capsys.readouterr().out.splitlines()[-1] == "student: https://huggingface.co/me/drawings-student"

    monkeypatch.undo()
    for arguments, code, told in (
        ((run, "--hub_model_id", "me/drawings"), os.EX_UNAVAILABLE, "HF_HUB_OFFLINE is set"),
        ((run, "--hub_model_id", "me/my drawings"), 2, "Repo id must"),
        ((run / "nothing",), 2, "there is no finished run in"),
    ):
        with pytest.raises(SystemExit) as stop:
            call(monkeypatch, "push", *arguments)
        assert stop.value.code == code and told in capsys.readouterr().err


def test_a_finished_run_that_cannot_be_pushed(run_arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "run"
    arguments = [*run_arguments, "--stages", "student", "--distillation", "none", "--output_dir", folder]
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "train", *arguments, "--push_to_hub", "--hub_model_id", "me/drawings")
    assert stop.value.code == os.EX_UNAVAILABLE
    told = capsys.readouterr().err
    assert "The training is finished, but me/drawings-student could not be pushed to the Hub: HF_HUB_OFFLINE" in told
    assert f"to try again: python recipes/push.py {folder} --hub_model_id me/drawings\n" in told
    assert PromptViTForImageClassification.from_pretrained(folder / "student").config.tasks_seen == 3
    assert (folder / "results.json").is_file()
    assert not any(TOKEN.encode() in content for content in snapshot(folder).values())

    # Interrupted while it is pushed, it goes on with that: the same command would be refused.
    monkeypatch.setattr(push_module, "push_run", lambda *args, **settings: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "train", "--output_dir", folder, "--resume_from_checkpoint")
    assert stop.value.code == os.EX_TEMPFAIL
    assert f"Interrupted; resume with --output_dir {folder} --resume_from_checkpoint." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--push_to_hub", "--hub_model_id", "me/drawings"], "hf auth login"),
        (["--push_to_hub", "--hub_model_id", "me/my/drawings"], "Repo id must"),
        (["--hub_model_id", "me/drawings"], "need push_to_hub"),
    ],
)
def test_mistakes_are_told_before_training(run_arguments, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(push_module, "get_token", lambda: None)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "train", *run_arguments, "--output_dir", tmp_path / "run", *arguments)
    assert stop.value.code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_fake_hub_takes_what_the_real_one_takes():
    """Its methods have no argument that huggingface_hub's have not."""
    import inspect

    for name in ("create_repo", "model_info", "create_branch", "upload_folder"):
        real = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        assert set(inspect.signature(getattr(FakeHub, name)).parameters) <= set(real)
