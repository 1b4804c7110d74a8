"""Runs grouped into experiments, and how experiments are told apart."""

import pytest

from cdl_hf.comparison.experiments import Unit, group_runs
from cdl_hf.comparison.sections import baseline_label
from cdl_hf.evaluation.pareto import pareto_front


def run(seed=0, **args):
    defaults = {
        **{
            "stages": "student",
            "prompt_method": "l2p",
            "distillation": "kdp",
            "classifier": "linear",
            "kd_alpha": 0.5,
        },
        **{"classifier_alignment": False, "class_order": "natural", "stream_seed": 0, "teacher": "a", "student": "b"},
        **{"output_dir": f"somewhere/{seed}", "learning_rate": 0.1},
    }
    figures = {"average_accuracy": 50.0 + seed, "accuracy_matrix": [[60.0], [40.0, 62.5]]}
    return {
        "stream": {
            "source": "/data/drawings",
            "num_tasks": 2,
            "class_names": ["a", "b"],
            "train": [9, 9],
            "test": [10, 8],
        },
        **{"args": {**defaults, "seed": seed, **args}, "tested_on": "test", "seconds": {}},
        **{"teacher": figures, "student": figures},
    }


def test_runs_are_grouped_by_seed():
    (experiment,) = group_runs({"x-seed1": run(1), "x-seed0": run(0), "x-seed10": run(10)})
    assert experiment.accuracy == {Unit(0, 0): 50.0, Unit(0, 1): 51.0, Unit(0, 10): 60.0}
    assert experiment.runs == {Unit(0, 0): "x-seed0", Unit(0, 1): "x-seed1", Unit(0, 10): "x-seed10"}
    assert (experiment.learner, experiment.classifier, experiment.benchmark.source) == (
        "student, KDP",
        "linear",
        "drawings",
    )


def test_runs_of_several_class_orders_are_one_experiment():
    runs = {
        f"order{order}-x-seed{seed}": run(seed, class_order="seeded", stream_seed=order)
        for order in (7, 8)
        for seed in (0, 1)
    }
    joint = run(0, class_order="seeded", stream_seed=9)
    joint["teacher"] = {**joint["teacher"], "num_tasks": 1}  # else the same arguments
    one, other = group_runs({**runs, "order9-x-joint-seed0": joint})
    assert one.accuracy == {Unit(7, 0): 50.0, Unit(7, 1): 51.0, Unit(8, 0): 50.0, Unit(8, 1): 51.0}
    assert one.runs[Unit(8, 1)] == "order8-x-seed1"
    assert other.accuracy == {Unit(9, 0): 50.0} and one.benchmark == other.benchmark


def test_runs_of_one_name_may_differ_in_the_seed_of_the_stream():
    runs = {f"x-seed{seed}": run(seed, class_order="seeded", stream_seed=seed + 5) for seed in (0, 1)}
    (one,) = group_runs(runs)
    assert one.accuracy == {Unit(5, 0): 50.0, Unit(6, 1): 51.0}


def test_runs_made_twice_stay_two_experiments():
    assert [e.name for e in group_runs({"a-seed0": run(), "b-seed0": run()})] == ["a", "b"]


def test_a_run_of_both_models_is_two_experiments():
    experiments = group_runs({"mine": run(stages="both", distillation="none", classifier_alignment=True)})
    assert [(s.role, s.learner, s.classifier) for s in experiments] == [
        ("teacher", "teacher", "aligned"),
        ("student", "student alone", "aligned"),
    ]


def test_a_teacher_without_prompts_is_frozen():
    teacher, student = group_runs({"mine": run(stages="both", teacher_prompt_method="none")})
    assert (teacher.prompts, student.prompts) == ("frozen", "L2P")


def test_experiments_with_the_same_label_are_told_apart_by_their_arguments():
    experiments = group_runs(
        {"a-seed0": run(), "b-seed0": run(kd_alpha=0.7), "c-seed0": run(classifier="ncm", kd_alpha=0.7)}
    )
    assert [s.learner for s in experiments] == [
        "student, KDP (kd alpha 0.5)",
        "student, KDP (kd alpha 0.7)",
        "student, KDP",
    ]


def test_experiments_that_differ_in_nothing_but_their_name_are_told_apart_by_it():
    runs = {"a-seed0": run(), "b-seed0": run(), "c-seed0": run(kd_alpha=0.7), "anna/a-seed0": run()}
    experiments = group_runs(runs)
    assert [e.learner for e in experiments] == [
        "student, KDP (kd alpha 0.5, a)",
        "student, KDP (kd alpha 0.5, b)",
        "student, KDP (kd alpha 0.7)",
        "student, KDP (kd alpha 0.5, from anna)",
    ]
    frozen = {name: {**each, "args": each["args"] | {"prompt_method": "none"}} for name, each in runs.items()}
    alone = {name: {**each, "args": each["args"] | {"distillation": "none"}} for name, each in frozen.items()}
    assert len({baseline_label(e) for e in group_runs(alone)}) == 4


def test_experiments_of_one_label_are_refused():
    with pytest.raises(ValueError, match="the runs 'a' and 'b' have one label, 'L2P, student, KDP'"):
        group_runs({"a-seed0": run(), "b-seed0": run(prompt_method="L2P")})


def test_runs_of_one_name_and_seed_are_refused():
    with pytest.raises(ValueError, match="the runs 'x' and 'x-seed0' are one run by name and seed 0: rename one"):
        group_runs({"x": run(), "x-seed0": run()})


def test_a_joint_teacher_is_in_the_label():
    along, joint = run(), run()
    joint["teacher"] = {**joint["teacher"], "num_tasks": 1}
    experiments = group_runs({"a-seed0": along, "b-seed0": joint})
    assert [(s.has_joint_teacher, s.learner) for s in experiments] == [
        (False, "student, KDP"),
        (True, "student, KDP (joint teacher)"),
    ]
    varied = group_runs({"a-seed0": joint, "b-seed0": {**joint, "args": {**joint["args"], "kd_alpha": 0.7}}})
    assert varied[1].learner == "student, KDP (joint teacher, kd alpha 0.7)"


def test_runs_of_a_name_that_differ_are_refused():
    with pytest.raises(ValueError, match="the runs 'x' differ in more than their seeds"):
        group_runs({"x-seed0": run(0), "x-seed1": run(1, learning_rate=0.2)})


def test_arguments_that_mean_nothing_to_a_run_do_not_tell_it_apart():
    """The default of analytic_groups has changed, which concerns analytic distillation alone."""
    runs = {"x-seed0": run(0, analytic_groups=1), "x-seed1": run(1, analytic_groups=None)}
    (one,) = group_runs(runs)
    assert len(one.runs) == 2
    other = run(0, analytic_groups=None, learning_rate=0.2)
    assert [e.note for e in group_runs({**runs, "y-seed0": other})] == ["learning rate 0.1", "learning rate 0.2"]
    analytic = {name: {**each, "args": each["args"] | {"distillation": "analytic"}} for name, each in runs.items()}
    with pytest.raises(ValueError, match="differ in more than their seeds"):
        group_runs(analytic)


def test_front():
    points = {"a": (1, 30.0), "b": (2, 29.0), "c": (2, 40.0), "d": (3, 40.0), "e": (9, 41.0), "f": (1, 20.0)}
    assert pareto_front(points) == ["a", "c", "e"]
