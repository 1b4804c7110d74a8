"""Every mistake of a user's is told in one line; everything else becomes typed dataclasses."""

import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml

from cdl_hf.cli import ParsedArguments, argument, cli_error, parse, to_dict, to_yaml


@dataclass
class ModelArguments:
    """What is trained.

    More of this docstring is not for the help page.
    """

    teacher: str = argument("a model, 100% of it", "bundled")
    prompt_method: Literal["l2p", "dualprompt", "coda_prompt"] = argument("how the model is prompted", "coda_prompt")
    pool_size: int = argument("prompts in the pool", 100, min=1)
    blocks: list[int] | None = argument("blocks that get a prompt", None, min=0, max=11)


@dataclass
class TrainingArguments:
    """How it is trained."""

    learning_rate: float = argument("peak learning rate", 0.001, min=0)
    alpha: float = argument("weight of the teacher", 0.5, min=0, max=1)
    dropout: float = argument("share of tokens dropped", 0.0, max=1)
    num_tasks: int = argument("tasks in the stream", 10)
    max_samples: int | None = argument("samples a class", None)
    image_size: Literal[224, 384] = argument("pixels", 224)
    trackers: list[str] = argument("trackers", [], choices=("tensorboard", "wandb"))
    betas: list[float] = argument("of Adam", [0.9, 0.999])
    report_to: Literal["none", "wandb"] | None = argument("a tracker", None)
    order: str | list[str] = argument("of the classes", "natural")
    overwrite: bool = argument("write into a folder that is not empty", False)

    def __post_init__(self):
        if self.alpha > 0 and self.num_tasks > 50:
            raise ValueError("with alpha above 0,\n num_tasks may be 50 at most: lower one of them.")


@dataclass
class OutputArguments:
    """Where it goes."""

    output_dir: str = argument("a folder")


CLASSES = (ModelArguments, TrainingArguments)


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", rb"caf\xe9 \udcff"), ("utf-8", b"caf\xc3\xa9 \\udcff")])
def test_what_the_terminal_cannot_show_is_printed_as_escapes(monkeypatch, encoding, shown):
    """Names of classes and of files that are not UTF-8, after all the work is done."""
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding=encoding))
    parse(CLASSES, [])
    print("caf\u00e9 \udcff", end="", flush=True)
    assert terminal.getvalue() == shown


def test_defaults_are_the_dataclasses_own():
    model, training = parse(CLASSES, [])
    assert model == ModelArguments()
    assert training == TrainingArguments()


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ("--teacher vit_b.augreg", "teacher", "vit_b.augreg"),
        ("--teacher=--odd", "teacher", "--odd"),
        ("--teacher no", "teacher", "no"),
        ("--pool_size 7", "pool_size", 7),
        ("--pool_size 7 --pool_size 8", "pool_size", 8),
        ("--learning_rate 2e-3", "learning_rate", 2e-3),
        ("--learning_rate 1", "learning_rate", 1.0),
        ("--dropout -1e-3", "dropout", -1e-3),
        ("--blocks 0 1 11", "blocks", [0, 1, 11]),
        ("--blocks none", "blocks", None),
        ("--betas 0.8 1", "betas", [0.8, 1.0]),
        ("--trackers wandb", "trackers", ["wandb"]),
        ("--max_samples 5", "max_samples", 5),
        ("--order a,b", "order", "a,b"),
        ("--order a,b c", "order", ["a,b", "c"]),
        ("--max_samples None", "max_samples", None),
        ("--image_size 384", "image_size", 384),
        ("--report_to none", "report_to", "none"),
        ("--report_to null", "report_to", None),
        ("--overwrite", "overwrite", True),
        ("--overwrite true", "overwrite", True),
        ("--overwrite --no_overwrite", "overwrite", False),
        ("--overwrite=False", "overwrite", False),
    ],
)
def test_command_line_values(argv, name, value):
    resolved = to_dict(parse(CLASSES, argv.split()))
    assert resolved[name] == value
    assert type(resolved[name]) is type(value)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 2e-3", "learning_rate", 2e-3),
        ("learning_rate: 2.0e-3", "learning_rate", 2e-3),
        ("pool_size: 010", "pool_size", 10),
        ("teacher: no", "teacher", "no"),
        ("teacher: 'with: colon'", "teacher", "with: colon"),
        ("overwrite: yes", "overwrite", True),
        ("overwrite: false", "overwrite", False),
        ("blocks: [0, 1]", "blocks", [0, 1]),
        ("trackers:\n- wandb\n- tensorboard", "trackers", ["wandb", "tensorboard"]),
        ("trackers: []", "trackers", []),
        ("order: seeded", "order", "seeded"),
        ("order: ['a,b', 010]", "order", ["a,b", "010"]),
        ("order: [a]", "order", ["a"]),
        ("max_samples: null", "max_samples", None),
        ("max_samples:", "max_samples", None),
        ("# only a comment", "pool_size", 100),
    ],
)
def test_yaml_values(tmp_path, text, name, value):
    resolved = to_dict(parse(CLASSES, ["--config", write(tmp_path, text)]))
    assert resolved[name] == value
    assert type(resolved[name]) is type(value)


def test_command_line_overrides_yaml_overrides_defaults(tmp_path):
    path = write(tmp_path, "pool_size: 20\nalpha: 0.1\n")
    for argv in (["--alpha", "0.2", "--config", path], [f"--config={path}", "--alpha", "0.2"]):
        model, training = parse(CLASSES, argv)
        assert (model.pool_size, training.alpha, training.num_tasks) == (20, 0.2, 10)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--pol_size 3", "unknown argument --pol_size; did you mean --pool_size? (--help lists all arguments)"),
        ("--pool-size 3", "unknown argument --pool-size; did you mean --pool_size? (--help lists all arguments)"),
        ("--confg run.yaml", "unknown argument --confg; did you mean --config? (--help lists all arguments)"),
        ("--qqqq", "unknown argument --qqqq (--help lists all arguments)"),
        ("--no_alpha", "unknown argument --no_alpha; did you mean --alpha? (--help lists all arguments)"),
        ("run.yaml", "'run.yaml' is not an argument: write --name value (--help lists all arguments)"),
        ("--pool_size", "--pool_size needs a value (prompts in the pool)"),
        ("--trackers", "--trackers needs a value (trackers)"),
        ("--pool_size 3 4", "--pool_size takes one value, but 2 are given: 3 4"),
        ("--pool_size five", "--pool_size must be a whole number, got 'five'"),
        ("--pool_size 1.5", "--pool_size must be a whole number, got '1.5'"),
        ("--pool_size none", "--pool_size must be a whole number, got 'none'"),
        ("--pool_size 0", "--pool_size must be at least 1, got 0"),
        ("--dropout 1.5", "--dropout must be at most 1, got 1.5"),
        ("--alpha -0.1", "--alpha must be from 0 to 1, got -0.1"),
        ("--alpha half", "--alpha must be a number, got 'half'"),
        ("--alpha nan", "--alpha must be a finite number, got 'nan'"),
        ("--learning_rate inf", "--learning_rate must be a finite number, got 'inf'"),
        ("--learning_rate -1e-3", "--learning_rate must be at least 0, got -1e-3"),
        ("--betas 0.9 nan", "--betas must be a finite number, got 'nan'"),
        ("--blocks 0 12", "--blocks must be from 0 to 11, got 12"),
        ("--teacher=", "--teacher must be a text, got ''"),
        (
            "--prompt_method coda",
            "must be one of l2p, dualprompt, coda_prompt, got 'coda'; did you mean coda_prompt?",
        ),
        ("--image_size 256", "--image_size must be one of 224, 384, got '256'"),
        ("--trackers wandb wndb", "--trackers must be one of tensorboard, wandb, got 'wndb'; did you mean wandb?"),
        ("--overwrite maybe", "--overwrite must be true or false, got 'maybe'"),
        ("--no_overwrite true", "--no_overwrite takes no value, but true is given: write --no_overwrite alone"),
        ("--config", "--config needs the path of one YAML file"),
        ("--config=", "--config needs the path of one YAML file"),
        ("--config a.yaml b.yaml", "--config needs the path of one YAML file"),
        ("--config no_such.yaml", "--config no_such.yaml: cannot read this file (No such file or directory)"),
        (
            "--num_tasks 60",
            "with alpha above 0, num_tasks may be 50 at most: lower one of them. "
            "[alpha = 0.5 (default), num_tasks = 60 (command line)]",
        ),
    ],
)
def test_command_line_mistakes(argv, message, capsys):
    check_refusal(argv.split(), message, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha: 0\nqqqq: 3", "unknown key 'qqqq' (PATH, line 2) (--help lists all arguments)"),
        (
            "pool-size: 3",
            "unknown key 'pool-size' (PATH, line 1); did you mean pool_size? (--help lists all arguments)",
        ),
        ("<<: {alpha: 1}", "unknown key '<<' (PATH, line 1) (--help lists all arguments)"),
        ("alpha: 0\n\nalpha: 1", "alpha is set twice (PATH, line 1 and PATH, line 3): keep one of them"),
        ("config: b.yaml", "config (PATH, line 1): a YAML file cannot name another one"),
        ("pool_size: five", "pool_size (PATH, line 1) must be a whole number, got 'five'"),
        ("pool_size:", "pool_size (PATH, line 1) must be a whole number, got ''"),
        ("pool_size: [1]", "pool_size (PATH, line 1) must be a whole number, not a list, got ['1']"),
        ("blocks: 1", "blocks (PATH, line 1) must be a list such as [a, b], got '1'"),
        (
            "blocks: [[1]]",
            "blocks (PATH, line 1) must be a single value or a plain list: nothing can be nested in it",
        ),
        ("blocks: &b [*b]", "blocks (PATH, line 1) must be a single value or a plain list"),
        ("model: {teacher: a}", "unknown key 'model' (PATH, line 1)"),
        ("teacher: {name: a}", "teacher (PATH, line 1) must be a single value or a plain list"),
        ("alpha: .nan", "alpha (PATH, line 1) must be a number, got '.nan'"),
        ("alpha: NaN", "alpha (PATH, line 1) must be a finite number, got 'NaN'"),
        ("alpha: 2", "alpha (PATH, line 1) must be from 0 to 1, got 2"),
        (
            "teacher: !!python/object/apply:os.getcwd []",
            "teacher (PATH, line 1) must be a text, not a list, got []",
        ),
        ("- alpha", "--config PATH: this file must consist of lines 'name: value'"),
        ("alpha", "--config PATH: this file must consist of lines 'name: value'"),
        ("alpha: [1", '--config PATH: this file is not valid YAML (while parsing a flow sequence in "PATH", line 1'),
        ("alpha: 1\n---\nalpha: 2", "--config PATH: this file is not valid YAML (expected a single document"),
        ("num_tasks: 60", "[alpha = 0.5 (default), num_tasks = 60 (PATH, line 1)]"),
    ],
)
def test_yaml_mistakes(tmp_path, text, message, capsys):
    path = write(tmp_path, text)
    check_refusal(["--config", path], message.replace("PATH", path), capsys)


def test_yaml_is_checked_even_where_it_is_overridden(tmp_path, capsys):
    check_refusal(["--config", write(tmp_path, "alpha: 2"), "--alpha", "1"], "must be from 0 to 1", capsys)


def test_config_must_be_a_readable_text(tmp_path, capsys):
    check_refusal(["--config", str(tmp_path)], f"--config {tmp_path}: cannot read this file (Is a directory)", capsys)
    (tmp_path / "latin.yaml").write_bytes("teacher: \xe9".encode("latin-1"))
    check_refusal(["--config", str(tmp_path / "latin.yaml")], "this file is not a text in UTF-8", capsys)


def check_refusal(argv, message, capsys, classes=CLASSES):
    with pytest.raises(SystemExit) as stop:
        parse(classes, argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert message in err
    assert err.count("\n") == 1 and ": error: " in err and out == ""


def test_the_record_of_an_earlier_call_counts_where_nothing_is_given(tmp_path, capsys):
    record, classes = tmp_path / "args.yaml", (ModelArguments, TrainingArguments)
    record.write_text("pool_size: 7\nalpha: 0.25\n")
    parsed = parse(classes, ["--alpha", "0.75"], record=lambda values: str(record))
    assert to_dict(parsed) == to_dict(parse(classes, ["--pool_size", "7", "--alpha", "0.75"]))
    cut = "is empty or cut off: put back a copy"
    for damaged, told in (("", cut), ("pool_size: 7\n", cut), ("alpha: 0.25\npool_si", "not valid YAML")):
        record.write_text(damaged)
        with pytest.raises(SystemExit) as stop:
            parse(classes, ["--alpha", "0.75"], record=lambda values: str(record))
        message = capsys.readouterr().err
        assert stop.value.code == 2 and f"error: {record}" in message and told in message  # not of --config


def test_required_argument(tmp_path, capsys):
    check_refusal([], "--output_dir is required (a folder)", capsys, (OutputArguments,))
    (output,) = parse((OutputArguments,), ["--config", write(tmp_path, "output_dir: runs/a")])
    assert output == OutputArguments("runs/a")


def test_one_message_a_node(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as stop:
        cli_error("anything")
    assert stop.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_list_stays_a_list(capsys):
    with pytest.raises(SystemExit):
        cli_error("2 images cannot be read:\n  a.png: empty;\n  b.png: truncated.")
    assert capsys.readouterr().err.splitlines()[1:] == ["  a.png: empty;", "  b.png: truncated."]


def test_help_is_grouped_and_tells_types_choices_ranges_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(
            (*CLASSES, OutputArguments),
            ["--nonsense", "--help"],
            description="Trains a model.\n\n    train.py --seed 1",
        )
    assert stop.value.code == 0
    page = capsys.readouterr().out
    for text in (
        "Trains a model.\n\n    train.py --seed 1\n",
        "--config FILE.yaml",
        "--teacher STR",
        "a model, 100% of it (default: bundled)",
        "--prompt_method {l2p,dualprompt,coda_prompt}",
        "how the model is prompted (default: coda_prompt)",
        "--blocks INT [INT ...]",
        "(from 0 to 11; default: not given)",
        "peak learning rate (at least 0; default: 0.001)",
        "of Adam (default: 0.9 0.999)",
        "--[no_]overwrite",
        "a folder (required)",
    ):
        assert text in page
    titles = ["What is trained:", "--pool_size", "How it is trained:", "--alpha", "Where it goes:", "--output_dir"]
    assert sorted(titles, key=page.index) == titles
    assert "not for the help page" not in page


def test_to_yaml_round_trip(tmp_path):
    argv = ["--teacher", "5", "--blocks", "3", "--learning_rate", "1e-5", "--overwrite", "--report_to", "none"]
    first = parse(CLASSES, argv)
    second = parse(CLASSES, ["--config", write(tmp_path, to_yaml(first))])
    assert second.instances == first.instances
    assert to_yaml(second) == to_yaml(first)
    assert yaml.safe_load(to_yaml(first)) == to_dict(first)
    assert to_yaml(first).startswith("# What is trained\nteacher: '5'\n")


def test_keeps_what_was_given(tmp_path):
    path = write(tmp_path, "learning_rate: 2e-3\nblocks: [1]\n")
    parsed = parse(CLASSES, ["--config", path, "--alpha", "0.2"])
    assert isinstance(parsed, ParsedArguments)
    assert json.loads(json.dumps(parsed.given)) == {
        "command_line": ["--config", path, "--alpha", "0.2"],
        "config_file": path,
        "config": {"learning_rate": "2e-3", "blocks": ["1"]},
    }
    assert parse(CLASSES, []).given == {"command_line": [], "config_file": None, "config": None}


def test_reads_the_process_own_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--pool_size", "3"])
    model, _ = parse(CLASSES)
    assert model.pool_size == 3


@dataclass
class FileArguments:
    """What is read."""

    checkpoint: str = argument("a model", positional=True)
    files: list[str] = argument("images", positional=True)
    top_k: int = argument("answers an image", 5)


@pytest.mark.parametrize(
    "argv",
    [
        ["model", "a.png", "b.png", "--top_k", "3"],
        ["model", "--top_k", "3", "--files", "a.png", "b.png"],
        ["--top_k", "3", "--files", "a.png", "b.png", "--checkpoint", "model"],
        ["other", "--checkpoint", "model", "--files", "a.png", "b.png", "--top_k", "3"],  # the last one counts
    ],
)
def test_positional_arguments(argv):
    (args,) = parse((FileArguments,), argv)
    assert args == FileArguments("model", ["a.png", "b.png"], 3)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "error: checkpoint is required (a model)"),
        (["model"], "error: files is required (images)"),
        (["model", "--top_k", "3", "a.png"], "--top_k takes one value, but 2 are given: 3 a.png"),
    ],
)
def test_missing_positional_arguments(argv, told, capsys):
    with pytest.raises(SystemExit):
        parse((FileArguments,), argv)
    assert told in capsys.readouterr().err


def test_help_shows_positional_arguments(capsys):
    with pytest.raises(SystemExit):
        parse((FileArguments,), ["--help"])
    page = capsys.readouterr().out
    assert "CHECKPOINT FILES ... [--config FILE.yaml]" in page
    assert re.search(r"positional arguments:\n  CHECKPOINT +a model\n  FILES +images\n", page)
    assert "--checkpoint" not in page


def test_two_classes_may_not_share_a_name():
    with pytest.raises(TypeError, match=r"ModelArguments\.teacher: another argument has this name"):
        parse((ModelArguments, ModelArguments), [])


def test_unusable_annotation_is_the_programmers_mistake():
    @dataclass
    class Odd:
        pairs: dict = argument("pairs")

    with pytest.raises(TypeError, match="is not a type that an argument can have"):
        parse((Odd,), [])


@dataclass
class MethodArguments:
    """The method."""

    method: str = argument("The method", "kd", choices={"kd": "knowledge distillation", "other": "another one " * 20})
    size: int | None = argument("A size", None, unset="the model's")


def test_help_describes_each_choice_on_a_line_of_its_own(capsys):
    with pytest.raises(SystemExit):
        parse((MethodArguments,), ["--help"])
    page = capsys.readouterr().out
    assert re.search(
        r"--method NAME +The method \(default: kd\)\n +kd     knowledge distillation\n +other  anoth", page
    )
    assert "A size (default: the model's)" in page
    check_refusal(["--method", "kdp"], "--method must be one of kd, other, got 'kdp'; did", capsys, (MethodArguments,))


def test_an_argument_copies_its_default():
    @dataclass
    class Lists:
        values: list[int] = argument("Values", [1, 2])

    Lists().values.append(3)
    assert Lists().values == [1, 2]


def test_imports_nothing_heavy():
    code = (
        "import sys, cdl_hf.cli, cdl_hf.catalogue, cdl_hf.arguments.config;"
        "print({name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers', 'accelerate', 'numpy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
