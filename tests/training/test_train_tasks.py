"""Training in the first tasks only: later ones just change the classifier that is computed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import images, start_task, tiny_model

from cdl_hf.arguments.config import CDLConfig
from cdl_hf.training.build import check_heads


@pytest.mark.parametrize("prompt_method", ["l2p", "dualprompt", "coda_prompt", "apt", "lora"])
@torch.no_grad()
def test_later_tasks_leave_the_features_as_they_are(prompt_method):
    model = tiny_model(
        prompt_method, tasks=0, train_tasks=1, **({"pool_size": 7} if prompt_method == "coda_prompt" else {})
    )
    start_task(model)
    for name, parameter in model.prompt_pool.named_parameters():
        if parameter.requires_grad and name != "keys":
            parameter.normal_()
    model.end_task()
    state, x = {name: tensor.clone() for name, tensor in model.prompt_pool.state_dict().items()}, images()
    features = model.eval().head_features(x)
    for _ in range(2):
        start_task(model)
        model.end_task()
        assert torch.equal(model.eval().head_features(x), features)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.prompt_pool.state_dict().items())


def test_a_run_trains_the_first_task_and_fits_all(train, command, tmp_path, capsys):
    run = tmp_path / "run"
    command = [*command, "--train_tasks", 1, "--prompt_method", "lora", "--distillation", "kd", "--classifier", "ncm"]
    train(*command, "--output_dir", run)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {event["task"] for event in events if event["event"] == "epoch"} == {0}
    assert [event["task"] for event in events if event["event"] == "evaluation"] == [0, 1, 2]
    first, *_, last = (load_file(run / "states" / "student" / f"task_{task:03d}.safetensors") for task in range(3))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"classifier.sums", "logit_scale"}
    with pytest.raises(SystemExit):
        other = [*command, "--train_tasks", 2, "--stages", "student", "--teacher_run", run]
        train(*other, "--output_dir", tmp_path / "other")
    assert "was trained in other tasks: pass its --train_tasks, 1" in capsys.readouterr().err


def test_heads_without_their_later_rows_are_refused():
    args, model = CDLConfig(), tiny_model("lora", tasks=0, train_tasks=1)
    with pytest.raises(
        ValueError, match="train_tasks=1 leaves the heads' rows of later classes untrained: take class"
    ):
        check_heads(model, args)
    check_heads(model, CDLConfig(classifier_alignment=True))
    check_heads(tiny_model("lora", tasks=0, train_tasks=1, head="ranpac"), args)
    check_heads(tiny_model("lora", tasks=0, train_tasks=3), args)


@pytest.mark.parametrize(
    ("method", "more", "args", "words"),
    [
        ("l2p", {}, {}, "linear heads keep nothing: take classifier=ncm, or classifier_alignment"),
        ("l2p", {"head": "ranpac"}, {}, "does not help RanPAC, whose random features are too many"),
        ("none", {"head": "ncm"}, {}, "after the first task nothing is trained here"),
        ("l2p", {"head": "ncm", "train_tasks": 1}, {}, "after the first task nothing is trained here"),
        ("l2p", {"head": "ncm"}, {}, None),
        ("l2p", {}, {"classifier_alignment": True}, None),
    ],
)
def test_drift_compensation_needs_something_that_drifts_and_something_to_carry(method, more, args, words):
    model, args = tiny_model(method, tasks=0, **more), CDLConfig(drift_compensation=True, **args)
    if words is None:
        return check_heads(model, args)
    with pytest.raises(ValueError, match=words):
        check_heads(model, args)


def test_as_many_tasks_as_there_are():
    with pytest.raises(ValueError, match=r"train_tasks must be between 1 and the number of tasks \(3\), got 4"):
        tiny_model("lora", train_tasks=4)
    with pytest.raises(ValueError, match=r"multiple of the number of tasks \(2\)"):
        tiny_model("coda_prompt", train_tasks=2, pool_size=7)
