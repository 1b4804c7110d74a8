"""The runs that a YAML file of axes plans."""

from pathlib import Path

import pytest

from cdl_hf.comparison.grid import read_grid
from cdl_hf.presets import preset_or_file

GRID = """
arguments: {num_train_epochs: 2}
seeds: [0, 5]
grids:
  one:
    teachers:
      prompts: {l2p: {prompt_method: l2p}, apt: {prompt_method: apt, prompt_blocks: [0, 1]}}
      order: {natural: {}, drawn: {class_order: seeded}}
    students: {none: {distillation: none}, kd: {distillation: kd, kd_alpha: 0.7}}
  two:
    teachers:
      prompts: {l2p: {prompt_method: l2p}}
      order: {natural: {}}
    students: {kd: {distillation: kd, kd_alpha: 0.7}}
    classifiers: {ncm: {classifier: ncm}}
"""


@pytest.fixture
def grid(tmp_path):
    def write(text: str = GRID) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_teachers_are_shared_and_runs_of_two_grids_are_one(grid):
    groups = read_grid(grid())
    assert list(groups)[:4] == [
        f"{name}-teacher-seed0" for name in ("l2p-natural", "l2p-drawn", "apt-natural", "apt-drawn")
    ]
    assert len(groups) == 8
    assert [run.experiment.removeprefix("l2p-natural-") for run in groups["l2p-natural-teacher-seed5"]] == [
        *("teacher", "none", "kd", "teacher-ncm", "kd-ncm")
    ]


def test_command_lines(grid):
    runs = {run.name: run for group in read_grid(grid()).values() for run in group}
    line = " ".join(runs["apt-drawn-teacher-seed5"].command_line(Path("all")))
    assert line == (
        "--num_train_epochs 2 --prompt_method apt --prompt_blocks 0 1 --class_order seeded --seed 5 --stages teacher "
        "--cache_teacher_outputs true"
    )
    line = " ".join(runs["l2p-natural-kd-seed0"].command_line(Path("all")))
    assert line == (
        "--num_train_epochs 2 --prompt_method l2p --distillation kd --kd_alpha 0.7 --seed 0 --stages student "
        "--teacher_run all/l2p-natural-teacher-seed0"
    )
    line = " ".join(runs["l2p-natural-kd-ncm-seed0"].command_line(Path("all")))
    assert line.endswith("--classifier ncm --seed 0 --stages student --student_run all/l2p-natural-kd-seed0")
    line = " ".join(runs["l2p-natural-teacher-ncm-seed0"].command_line(Path("all")))
    assert line.endswith("--classifier ncm --seed 0 --stages teacher --teacher_run all/l2p-natural-teacher-seed0")
    assert runs["apt-drawn-kd-seed5"].resolved(Path("all"))["kd_alpha"] == 0.7


def test_values_to_keep(grid):
    groups = read_grid(grid(), ["seed5", "drawn", "kd"])
    assert list(groups) == ["l2p-drawn-teacher-seed5", "apt-drawn-teacher-seed5"]
    assert [run.experiment for run in groups["apt-drawn-teacher-seed5"]] == ["apt-drawn-teacher", "apt-drawn-kd"]
    assert list(read_grid(grid(), ["apt", "natural", "seed0"])) == ["apt-natural-teacher-seed0"]  # none of grid two
    (group,) = read_grid(grid(), ["l2p", "natural", "seed0", "none"]).values()
    assert [run.experiment for run in group] == ["l2p-natural-teacher", "l2p-natural-none"]
    with pytest.raises(ValueError, match="has no 'l2'"):
        read_grid(grid(), ["l2"])


def test_seeds_with_arguments_of_their_own(grid):
    text = GRID.replace("[0, 5]", "{0: {}, 5: {stream_seed: 7}}")
    runs = [run for group in read_grid(grid(text)).values() for run in group]
    assert {run.arguments.get("stream_seed") for run in runs if run.seed == 0} == {None}
    assert {run.arguments["stream_seed"] for run in runs if run.seed == 5} == {"7"}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds: [0, 5]", "seeds: {0: {seed: 3}}", "seeds, 0 sets seed"),
        ("seeds: [0, 5]", "seeds: {a: {}}", "or whole numbers with their arguments"),
        ("seeds: [0, 5]", "seed: 0", "unknown entry 'seed'"),
        ("seeds: [0, 5]", "seeds: [a]", "seeds must be a list of whole numbers"),
        ("students: {none: {distillation: none}", "students: {teacher: {distillation: none}", "named teacher"),
        ("classifier: ncm", "head: {a: b}", "two, classifiers, ncm must be arguments"),
        ("classifier: ncm", "seed: 3", "sets seed"),
        ("classifier: ncm", "teacher_from: runs/a", "sets teacher_run"),
        (
            "kd, kd_alpha: 0.7}}\n    classifiers",
            "kd, kd_alpha: 0.5}}\n    classifiers",
            "l2p-natural-kd-seed0, with different arguments",
        ),
        ("classifiers: {ncm", "head: {ncm", "unknown entry 'head'"),
        ("order: {natural: {}}", "order: {}", "two, order must be values"),
        ("seeds: [0, 5]", "seeds: [0, 5", "not valid YAML"),
        ("seeds: [0, 5]", "seeds: [0, 5]\nseeds: [1]", "seeds is set twice"),
    ],
)
def test_mistakes_are_reported(grid, before, after, message):
    assert before in GRID
    with pytest.raises(ValueError, match=message):
        read_grid(grid(GRID.replace(before, after)))


def test_the_earlier_key_of_classifiers_is_read(grid):
    groups = read_grid(grid(GRID.replace("classifiers:", "heads:")))
    assert "l2p-natural-kd-ncm" in [run.experiment for run in groups["l2p-natural-teacher-seed5"]]


def test_bundled_grid_asks_for_every_pair_of_methods_and_only_for_what_train_takes():
    groups = read_grid(preset_or_file("quickdraw100/grid"))
    runs = {run.name: run for group in groups.values() for run in group}
    prompts = ("coda_prompt", "l2p", "dualprompt", "apt")
    methods = ("none", "kd", "dkd", "fitnets", "reviewkd", "deit", "kdp", "cdl_prompt")
    for method in prompts:
        for learner in methods:
            for seed in (0, 1, 2):
                arguments = runs[f"{method}-{learner}-seed{seed}"].resolved(Path("runs"))
                assert (arguments["prompt_method"], arguments["distillation"]) == (method, learner)
                assert (arguments["seed"], arguments["num_tasks"]) == (seed, 10)
    for run in runs.values():
        assert run.resolved(Path("runs"))["num_tasks"] == (
            1 if "at_once" in run.name and "in_tasks" not in run.name else 10
        )
    assert {"frozen-teacher-ncm-seed0", "frozen-none-ranpac-seed2", "l2p-at_once-kdp-seed1"} <= runs.keys()


def test_the_grid_of_photographs_has_a_seed_for_each_class_order_and_its_backbones():
    root = Path(__file__).parents[2]
    groups = read_grid(root / "recipes/cifar100/grid.yaml")
    for run in (run for group in groups.values() for run in group):
        arguments = run.resolved(Path("runs"))
        assert arguments["class_order"] == "seeded" and arguments["stream_seed"] == arguments["seed"] == run.seed
        assert all((root / arguments[role] / "README.md").is_file() for role in ("teacher", "student"))
    assert {f"frozen-teacher-seed{seed}" for seed in range(5)} <= groups.keys()


def test_another_classifier_of_a_student_in_closed_form_reads_its_teacher(tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "seeds: [0]\n"
        "grids:\n"
        "  all:\n"
        "    teachers: {prompts: {frozen: {prompt_method: none, classifier: ranpac}}}\n"
        "    students: {kd: {distillation: kd}, analytic: {distillation: analytic}}\n"
        "    classifiers: {ncm: {classifier: ncm}}\n"
    )
    (runs,) = read_grid(grid).values()
    commands = {run.name: run.command_line(Path("runs")) for run in runs if run.kind == "classifier"}
    assert "--teacher_run" in commands["frozen-analytic-ncm-seed0"]
    assert "--teacher_run" not in commands["frozen-kd-ncm-seed0"]


def test_a_value_names_a_preset_of_the_package_or_a_file_beside_the_grid(grid, tmp_path):
    (tmp_path / "own.yaml").write_text("prompt_method: apt\n", encoding="utf-8")
    values = "{l2p: {config: quickdraw100/l2p}, own: {config: own.yaml}}"
    groups = read_grid(
        grid(f"{{seeds: [0], grids: {{one: {{teachers: {{prompts: {values}}}, students: {{none: {{}}}}}}}}}}")
    )
    named = {run.arguments["config"] for runs in groups.values() for run in runs}
    assert named == {"quickdraw100/l2p", str(tmp_path / "own.yaml")}
