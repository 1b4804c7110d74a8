"""Results of runs as files from anybody may have them."""

import copy

import pytest

from cdl_hf.comparison.results import RunResults, complete_results, read_runs

FIGURES = {
    **{"average_accuracy": 50.0, "accuracy_matrix": [[60.0], [40.0, 62.0]], "forgetting": {"cdl": 10.0}},
    **{"parameters": 100, "trainable_parameters": 10, "classifier_values": 0},
}
RESULTS = {
    "args": {"stages": "student", "class_order": ["a", "b"]},
    "stream": {
        **{"source": "drawings", "num_tasks": 2, "classes_per_task": [1, 1], "class_names": ["a", "b"]},
        **{"train": [9, 9], "test": [10, 8]},
    },
    **{"tested_on": "test", "seconds": {"student": 1.5}, "versions": {"torch": "2.14", "commit": None}},
    "student": FIGURES,
}


def spoiled(path: str, value: object) -> dict:
    results = copy.deepcopy(RESULTS)
    *groups, name = path.split(".")
    place = results
    for group in groups:
        place = place[group]
    place[name] = value
    return results


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((f"args.{name}", 3) for name in ("stages", "teacher", "student", "prompt_method", "distillation")),
        *((f"args.{name}", [3]) for name in ("classifier", "class_order", "seed", "stream_seed")),
        *((f"args.{name}", "4") for name in ("num_train_epochs", "batch_size")),
        *(("args.teacher_prompt_method", "../x"), ("args.seed", True)),
        *(("stream.num_tasks", 3), ("stream.num_tasks", 2.0), ("stream.blurry", None), ("stream.domains", 5)),
        *(("stream.class_names", "ab"), ("stream.classes_per_task", [0, 0]), ("stream.train", [9, 1e400])),
        *(("student.average_accuracy", "50"), ("student.average_incremental_accuracy", [1])),
        *(("student.forgetting.bwt", float("nan")), ("student.a_auc", float("inf")), ("student.parameters", 10**400)),
        *(("student.classifier_values", "0"), ("student.accuracy_matrix", []), ("student.accuracy_matrix", [[]])),
        *(("seconds.student", None), ("seconds", {}), ("versions.torch", 2.14), ("teacher", {})),
    ],
)
def test_what_a_report_cannot_read_is_refused(path, value):
    with pytest.raises(ValueError, match="anna/x: these are not the results of a run"):
        complete_results([RunResults("anna/x", spoiled(path, value))])


def test_learning_accuracy_is_that_of_the_matrix():
    complete = complete_results([RunResults("x", spoiled("student.learning_accuracy", 99.0))])
    assert complete["x"]["student"]["learning_accuracy"] == 61.0


@pytest.mark.parametrize("latency", [[], {"student": 1.5}, {"student": {"milliseconds": "1", "device": "cpu"}}])
def test_latencies_of_another_kind_are_refused(latency):
    with pytest.raises(ValueError, match="x: these are not the latencies of a run"):
        RunResults("x", RESULTS, latency)


def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path):
    for name, message in (("x.json", "cannot read this file as JSON"), ("runs.jsonl", "this is not a stored run")):
        (tmp_path / name).write_text("[" * 200_000)
        with pytest.raises(ValueError, match=message):
            read_runs(tmp_path / name)
