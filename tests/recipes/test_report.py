"""recipes/report.py on made-up runs, and the reports in the repository rebuilt from their stored results."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from cdl_hf.arguments.config import RUN
from cdl_hf.cli import parse, to_dict
from cdl_hf.commands import report as report_runs
from cdl_hf.comparison.rendering import as_page
from cdl_hf.comparison.reported import reported_pairs
from cdl_hf.comparison.results import RunResults, merge_runs, read_runs
from cdl_hf.evaluation import AccuracyMatrix
from cdl_hf.presets import preset_names, reported_files

RECIPES = Path(__file__).parents[2] / "recipes"
REPORTS = sorted(folder.parent for folder in RECIPES.glob("*/report/runs.jsonl"))
DRAWING = re.compile(r"Matplotlib v[\d.]+")


def figures(num_tasks: int, accuracy: float, parameters: int) -> dict:
    """Of a model with this accuracy on every task, and `accuracy` / 10 points lost of all but the last."""
    matrix = AccuracyMatrix(num_tasks)
    for after in range(num_tasks):
        for task in range(after + 1):
            right = round(10 * accuracy) + (round(accuracy) if task == after and after < num_tasks - 1 else 0)
            matrix.update(after, task, right, 1000)
    sizes = {"parameters": parameters, "trainable_parameters": parameters // 10, "classifier_values": 0}
    return {**matrix.summary(), **sizes}


def write_run(folder: Path, name: str, seed: int, accuracy: float, *arguments: str) -> None:
    args = to_dict(parse(RUN, [*arguments, "--seed", str(seed), "--output_dir", f"/somewhere/{name}"]))
    tasks, role = args["num_tasks"] or 10, args["stages"]
    results = {
        "stream": {
            **{"source": args["dataset"], "num_tasks": tasks},
            **{"classes_per_task": [100 // tasks] * tasks, "class_names": [f"class {i}" for i in range(100)]},
            **{"train": [40_000 // tasks] * tasks, "test": [10_000 // tasks] * tasks},
        },
        **{"args": args, "versions": {"torch": "2.14"}, "tested_on": "test", "seconds": {role: 100.0 + seed}},
        role: figures(tasks, accuracy, {"teacher": 4_000_000, "student": 1_000_000}[role]),
    }
    run = folder / f"{name}-seed{seed}"
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(results, indent=2))


@pytest.fixture
def runs(tmp_path) -> Path:
    folder = tmp_path / "runs"
    for seed, noise in enumerate((0.0, 1.0, 3.0)):
        teacher = ("--stages", "teacher", "--prompt_method", "l2p")
        student = ("--stages", "student", "--prompt_method", "l2p", "--distillation")
        frozen = ("--stages", "teacher", "--prompt_method", "none")
        write_run(folder, "l2p-teacher", seed, 60 + noise, *teacher)
        write_run(folder, "l2p-none", seed, 30 + noise, *student, "none")
        write_run(folder, "l2p-kd", seed, 31 + 2 * noise, *student, "kd")
        write_run(folder, "l2p-kdp", seed, 50 + noise * 1.1, *student, "kdp")
        write_run(folder, "l2p-teacher-ncm", seed, 62 + noise * 1.1, *teacher, "--classifier", "ncm")
        write_run(folder, "l2p-kdp-ncm", seed, 49 + 2 * noise, *student, "kdp", "--classifier", "ncm")
        write_run(folder, "frozen-teacher", seed, 20, *frozen)
        write_run(folder, "frozen-teacher-ncm", seed, 54.3, *frozen, "--classifier", "ncm")
        write_run(folder, "l2p-once-teacher", seed, 70 + noise, *teacher, "--num_tasks", "1")
        write_run(folder, "l2p-once-kdp", seed, 55 + noise, *student, "kdp", "--num_tasks", "1")
    return folder


@pytest.fixture
def report(monkeypatch):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        report_runs.main()

    return run


def written(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_report(runs, report, tmp_path):
    report(runs, "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    # kd - none: 1, 2, 4 with mean 2.33 and s = 1.5275, times 4.303 / sqrt(3); kdp is clearly above both.
    assert "| student, KD | 33.67 ± 3.06 | +2.33 [-1.46, +6.13], p = 0.118 |" in text
    assert "| student, KDP | **51.47 ± 1.68** | +20.13 [+19.75, +20.51], p < 0.001 |" in text
    assert "| student alone | 31.33 ± 1.53 |  |" in text
    # With class means l2p's prompts add 7.7, 8.8 and 11 points to the frozen teacher: 9.17 +- 4.303 * 1.6803 / sqrt(3)
    assert "| teacher | 54.30 ± 0.00 | 63.47 ± 1.68<br>+9.17 [+4.99, +13.34]<br>p = 0.011 |  |" in text
    assert "| student, KDP |  | 51.67 ± 3.06 |  |" in text
    assert "| frozen, head trained task by task | 20.00 ± 0.00 |  |" in text
    assert "| frozen, nearest class mean | 54.30 ± 0.00 |  |" in text
    assert "| L2P, joint training | 71.33 ± 1.53 |  |" in text
    assert "| L2P, joint training, student, KDP |  | 56.33 ± 1.53 |" in text
    assert "Comparison with the papers" not in text
    assert "/somewhere" not in "".join(map(str, written(tmp_path / "report").values()))
    lines = (tmp_path / "report" / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 30
    models = "vit_micro_quickdraw,vit_nano_quickdraw"
    expected = f'l2p-kd,1,quickdraw100,10,natural,0,{models},student,l2p,kd,"student, KD",linear,33.0'
    assert any(line.startswith(expected) for line in lines)
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('<svg role="img"') == 3 and "+20.13 [+19.75, +20.51]</text>" in page
    assert not re.search(r"(src|href)=\"http", page)
    assert "<strong>51.47 ± 1.68</strong>" in page


def brief(folder: Path) -> str:
    """The first section, without escapes."""
    return (folder / "report.md").read_text().split("## In brief")[1].split("\n## ")[0].replace("\\", "")


def test_the_first_section_says_what_was_compared_and_who_won(runs, report, tmp_path):
    report(runs, "--output_dir", tmp_path / "report")
    text = brief(tmp_path / "report")
    assert "Data: quickdraw100, 100 classes in 10 tasks of 10, and all at once (joint training); " in text
    assert "400 training and 100 test images a class, 10,000 test images in all." in text
    assert (
        "Models: vit_micro_quickdraw teaches vit_nano_quickdraw. Prompts: frozen, L2P; distillation: KD, KDP; " in text
    )
    assert "Training: 4 epochs a task" in text
    # 1.96 sqrt(0.515 * 0.485 / 10,000): of the accuracies, that of KDP is the closest to 50%
    assert "Sampling error of the test images: ±0.98 points for a single A_N" in text and "(at 51.5%, where" in text
    assert (
        "Runs: 30, 3 of each of 10 models. All have the same class order (natural). The seeds 0, 1 and 2 vary" in text
    )
    # kdp with class means has 49, 51, 55 and with its head 50, 51.1, 53.3
    assert "Best student: L2P, student, KDP, nearest class mean, A_N 51.67 ± 3.06%; next: L2P, student, KDP, " in text
    # to kd it is always 18 points, which says nothing about the noise
    assert "at a distance of +0.20 [-3.22, +3.62], p = 0.825; significantly better than 1 of the 3 others." in text
    found = "KDP is significantly better than the student alone: +20.13 points"
    assert f"Distillation, with trained heads: {found}." in text
    assert f"![{found}](differences-10.svg)" in text
    assert "**Bold**" in text and "Caution" not in text and "fewer than three" not in text


def test_a_single_run_gets_no_statistics(report, tmp_path):
    """Neither bold nor intervals, nor sentences on them."""
    for distillation, accuracy in (("none", 30), ("kd", 40), ("kdp", 35)):
        student = ("--stages", "student", "--prompt_method", "l2p", "--distillation", distillation)
        for seed in (0, 1):
            write_run(tmp_path / "runs", f"l2p-{distillation}", seed, accuracy + seed, *student)
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| student, KD | 40.50 ± 0.71 | +10.00 |" in text
    assert "KD differs most from the student alone: +10.00 points, from too few runs for an interval" in text
    assert "fewer than three runs" in text
    assert "**" not in text and "Brackets" not in text and "joint" not in brief(tmp_path / "report")


def test_students_without_one_that_learns_alone_are_compared_with_the_best(report, tmp_path):
    for seed in range(3):
        for distillation, accuracy in (("kd", 40), ("kdp", 35)):
            student = ("--stages", "student", "--prompt_method", "l2p", "--distillation", distillation)
            write_run(tmp_path / "runs", f"l2p-{distillation}", seed, accuracy + seed, *student)
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    text = brief(tmp_path / "report")
    assert "Best student: L2P, student, KD, A_N 41.00 ± 1.00%; next: L2P, student, KDP, at a distance of +5.00" in text
    assert "![L2P, student, KD is the best student; it is ahead of the next 1 by](differences-10.svg)" in text


def test_teachers_alone_have_a_best_one_too(report, tmp_path):
    for prompt_method, accuracy in (("l2p", 40), ("apt", 45)):
        arguments = ("--stages", "teacher", "--prompt_method", prompt_method)
        write_run(tmp_path / "runs", f"{prompt_method}-teacher", 0, accuracy, *arguments)
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    text = brief(tmp_path / "report")
    assert "Best teacher: APT, teacher, A_N 45.00%; next: L2P, teacher, at a distance of +5.00." in text
    assert "![APT, teacher is the best teacher; it is ahead of the next 1 by](differences-10.svg)" in text


def test_class_orders_are_runs_of_one_experiment(report, tmp_path):
    for order, (alone, taught) in enumerate(((40, 42), (44, 47), (48, 50))):
        student = ("--stages", "student", "--prompt_method", "l2p", "--class_order", "seeded")
        student += ("--stream_seed", str(order), "--distillation")
        write_run(tmp_path / "runs", f"order{order}-none", 0, alone, *student, "none")
        write_run(tmp_path / "runs", f"order{order}-kd", 0, taught, *student, "kd")
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    # differences 2, 3, 2: mean 2.33, s = 0.5774, times 4.303 / sqrt(3)
    assert "| student, KD | **46.33 ± 4.04** | +2.33 [+0.90, +3.77], p = 0.020 |" in text
    assert "They have 3 class orders (seeded, stream seeds 0, 1 and 2)." in brief(tmp_path / "report")
    assert text.count("\n## quickdraw100") == 1
    assert "order1-kd,0,quickdraw100,10,seeded,1," in (tmp_path / "report" / "results.csv").read_text()


def test_class_orders_may_have_a_seed_each(report, tmp_path):
    for seed in (3, 4):
        student = (
            "--stages",
            "student",
            "--class_order",
            "seeded",
            "--stream_seed",
            str(seed),
            "--distillation",
            "kd",
        )
        write_run(tmp_path / "runs", "x", seed, 40, *student)
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    each = "They have 2 class orders (seeded, stream seeds 3 and 4), each with a seed of its own."
    assert each in brief(tmp_path / "report")


def test_runs_of_different_code_are_marked(runs, report, tmp_path):
    for number, file in enumerate(sorted(runs.glob("l2p-kd-*/results.json"))):
        results = json.loads(file.read_text())
        results["versions"]["commit"] = f"{'ab'[number > 0]}" * 40
        file.write_text(json.dumps(results))
    report(runs, "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    caution = "Caution: 27, 2 and 1 of the runs were made with different commits or versions; one model mixes them"
    assert caution in brief(tmp_path / "report")
    assert "| not recorded | torch 2.14 | 27 |" in text and f"| {'b' * 40} | torch 2.14 | 2 |" in text


def test_overview_of_several_prompt_methods(runs, report, tmp_path):
    for seed, (alone, taught) in enumerate(((40, 42), (40, 43), (41, 43))):
        student = ("--stages", "student", "--prompt_method", "apt", "--distillation")
        write_run(runs, "apt-none", seed, alone, *student, "none")
        write_run(runs, "apt-kd", seed, taught, *student, "kd")
    report(runs, "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| learner | frozen | L2P | APT | vs. student alone |" in text
    # over the prompt methods, kd - none is (1 + 2) / 2, (2 + 3) / 2 and (4 + 2) / 2: 2.33 +- 4.303 * 0.7638 / sqrt(3)
    assert "| student, KD |  | 33.67 ± 3.06 | **42.67 ± 0.58** | +2.33 [+0.44, +4.23]<br>p = 0.034 |" in text
    # apt has no kdp: the difference is that to the l2p student alone
    assert "| student, KDP |  | **51.47 ± 1.68** |  | +20.13 [+19.75, +20.51]<br>p < 0.001 |" in text


def test_a_report_is_rebuilt_in_the_same_bytes(runs, report, tmp_path):
    report(runs, "--output_dir", tmp_path / "one")
    (tmp_path / "one" / "findings.md").write_text("## Findings\n\nIt helps.\n")
    report(runs, "--output_dir", tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "findings.md").write_text("## Findings\n\nIt helps.\n")
    report(tmp_path / "one", "--output_dir", tmp_path / "two")
    assert "\n\n## Findings\n\nIt helps.\n\n" in (tmp_path / "one" / "report.md").read_text()
    assert written(tmp_path / "one") == written(tmp_path / "two")


def test_reported_figures_are_shown_next_to_the_measured_ones(report, tmp_path):
    base, small = "vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_small_patch16_224.augreg_in21k_ft_in1k"
    preset = to_dict(parse(RUN, ["--config", "cifar100/base_to_small"]))
    assert (preset["teacher"], preset["student"]) == (base, small)
    pair = ("--dataset", "cifar100", "--teacher", base, "--student", small, "--prompt_method", "l2p")
    write_run(tmp_path / "runs", "l2p-kdp", 0, 80.0, *pair, "--stages", "student", "--distillation", "kdp")
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| L2P | student, KDP | 81.79 / 4.31 | 80.00 / 7.20 | 1 |" in text
    assert "| reported by the papers | measured here |" in text
    short = ("--stages", "student", "--distillation", "kdp", "--num_tasks", "5")
    write_run(tmp_path / "runs", "l2p-kdp-5", 0, 85.0, *pair, *short)
    write_run(tmp_path / "anna", "theirs", 0, 79.0, *pair, "--stages", "student", "--distillation", "dkd")
    report(tmp_path / "runs", "--others", tmp_path / "anna", "--output_dir", tmp_path / "both")
    text = (tmp_path / "both" / "report.md").read_text()
    papers = text.split("### Comparison with the papers")[1].split("\n###")[0]
    assert "student, DKD" in text and "DKD" not in papers, "the runs of others are not measured here"
    assert papers.count("KDP") == 1 and "81.79 / 4.31 | 80.00" in papers, "the papers have 10 tasks, not 5"


@pytest.mark.parametrize(
    ("data_set", "teacher_alone", "student_alone", "cdl_prompt"),
    [
        ("cifar100", "83.02 / 6.06", "65.05 / 13.55", "86.57 / 5.72"),
        ("imagenet_r", "71.59 / 5.65", "50.23 / 12.75", "76.36 / 4.27"),
    ],
)
def test_all_reported_figures_are_found(data_set, teacher_alone, student_alone, cdl_prompt):
    found = {}
    for preset in [name for name in preset_names() if name.startswith(f"{data_set}/")]:
        values = to_dict(parse(RUN, ["--config", preset]))
        setting = [values[name] for name in ("teacher", "student", "num_tasks")]
        reported = reported_pairs(reported_files(), data_set, *setting)
        found |= {(preset.split("/")[1], *key): value for key, value in reported.items()}
    # Seven methods on two pairs; with three prompt methods CDL-Prompt on three, two teachers and the tiny student.
    assert len(found) == 4 * 7 * 2 + 3 * (3 + 2 + 1)
    assert found["base_to_small", "l2p", None] == teacher_alone
    assert found["base_to_tiny", "coda_prompt", "none"] == student_alone
    assert found["large_to_base", "dualprompt", "cdl_prompt"] == cdl_prompt


def test_measured_latencies_are_stored_and_drawn(finished_run, report, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished_run)
    report(tmp_path / "runs", "--output_dir", tmp_path / "report", "--measure_latency")
    (stored,) = read_runs(tmp_path / "report")
    assert stored.name == "mine" and all(stored.latency[role]["milliseconds"] > 0 for role in ("teacher", "student"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert re.search(r"!\[Accuracy against latency: .*\]\(pareto-latency.svg\)", text)
    assert {"teacher", "student, KDP"} <= set(re.findall(r"CODA-Prompt \| ([\w, ]+) \|", text))
    before = written(tmp_path / "report")
    report(tmp_path / "report", "--output_dir", tmp_path / "report")
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")  # without --measure_latency, which are kept
    assert written(tmp_path / "report") == before
    with pytest.raises(SystemExit):
        report(tmp_path / "report", "--output_dir", tmp_path / "report", "--measure_latency")
    assert "has no saved models to measure" in capsys.readouterr().err


def test_the_numbers_of_a_computed_classifier_count_as_parameters(runs, report, tmp_path, capsys):
    for file in runs.glob("frozen-teacher-ncm-*/results.json"):
        file.write_text(file.read_text().replace('"classifier_values": 0', '"classifier_values": 111'))
    report(runs, "--output_dir", tmp_path / "report")
    lines = (tmp_path / "report" / "results.csv").read_text().splitlines()
    assert [",4000111," in line for line in lines] == ["frozen-teacher-ncm" in line for line in lines]
    file.write_text(file.read_text().replace("classifier_values", "other"))
    with pytest.raises(SystemExit):
        report(runs, "--output_dir", tmp_path / "report")
    assert "run it again" in capsys.readouterr().err


SCRIPT = "<script>alert(1)</script>"


def test_names_in_the_report_are_text(runs, report, tmp_path):
    for file in runs.glob("*/results.json"):
        results = json.loads(file.read_text())
        results["stream"]["source"] = f"C:\\Users\\anna\\=a|b {SCRIPT.replace('/', '')} \udce9"
        results["args"] |= {"teacher": SCRIPT, "student": "local-dir:/home/anna/-x|y", "dataset": "u:pw@h/x"}
        results["versions"]["torch"] = SCRIPT
        file.write_text(json.dumps(results))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "findings.md").write_text(f"## Found\n\n{SCRIPT}\n\na {SCRIPT} <b onclick=x>b</b>\n")
    report(runs, "--output_dir", tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    elements = set(re.findall(r"<(\w+)", page.split("<main>")[1].split("</main>")[0]))
    assert "table" in elements and not {"script", "b"} & elements
    assert "&lt;b onclick" in page and "<br>" in page
    text = (tmp_path / "report" / "report.md").read_text()
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    with (tmp_path / "report" / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["dataset"].startswith("'=a|b") and row["student"] == "local-dir:-x|y"
            assert float(row["forgetting_bwt"]) <= 0
    everything = b"".join(written(tmp_path / "report").values()).decode("utf-8", "replace").lower()
    assert not any(word in everything for word in ("anna", "users", "pw@"))


def test_no_html_in_the_title(tmp_path):
    assert "<title>&lt;script&gt;" in as_page(f"# {SCRIPT}\n", tmp_path)


def test_a_picture_that_the_report_has_not_drawn_runs_no_script(tmp_path):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>'
    (tmp_path / "x.svg").write_text(svg)
    shown = as_page("# Report\n\n![theirs](x.svg)\n", tmp_path)
    assert SCRIPT not in shown and 'src="data:image/svg+xml;base64,' in shown
    assert "<svg role=" in as_page("# Report\n\n![ours](x.svg)\n", tmp_path, ["x.svg"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda results: results["args"].update(prompt_method="../x"), "prompt_method cannot be '../x'"),
        (lambda results: results.pop("stream"), "these are not the results of a run"),
        (lambda results: results.pop("versions"), "these are not the results of a run (KeyError('versions'))"),
        (lambda results: results["stream"].update(train=None), "these are not the results of a run"),
        (lambda results: results.update(teacher={}, student={}), "(KeyError('average_accuracy'))"),
    ],
)
def test_results_of_no_run_are_refused(runs, report, tmp_path, capsys, spoil, message):
    file = next(runs.glob("*/results.json"))
    results = json.loads(file.read_text())
    spoil(results)
    file.write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        report(runs, "--output_dir", tmp_path / "report")
    assert message in capsys.readouterr().err


def test_runs_that_could_not_be_reported_are_not_stored(report, tmp_path, capsys):
    write_run(tmp_path / "runs", "l2p-none", 0, 40, *student("none"))
    (tmp_path / "findings.md").write_text("![mine](missing.png)")
    with pytest.raises(SystemExit):
        report(tmp_path / "runs", "--output_dir", tmp_path)
    assert "missing.png cannot be read" in capsys.readouterr().err and not (tmp_path / "runs.jsonl").exists()


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match="my picture.png cannot be read: No such file"):
        as_page("![mine](my%20picture.png)", tmp_path)


def test_a_missing_extra_is_named_first(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report_runs, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["report.py", str(runs), "--output_dir", str(tmp_path / "report")])
    with pytest.raises(SystemExit):
        report_runs.main()
    assert "pip install 'cdl_hf[report]'" in capsys.readouterr().err and not (tmp_path / "report").exists()


def test_folder_without_runs_is_refused(report, tmp_path, capsys):
    with pytest.raises(SystemExit):
        report(tmp_path, "--output_dir", tmp_path / "report")
    assert "has no folder of a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("folder", REPORTS, ids=lambda folder: folder.parent.name)
def test_report_in_the_repository_is_made_again_from_its_results(folder, report, tmp_path):
    if (folder / "findings.md").is_file():
        shutil.copy(folder / "findings.md", tmp_path)
    report(folder / "runs.jsonl", "--output_dir", tmp_path)
    ours, theirs = written(tmp_path), written(folder)
    assert ours.keys() == theirs.keys()
    picture = next(name for name in ours if name.endswith(".svg"))
    if DRAWING.search(ours[picture].decode())[0] != DRAWING.search(theirs[picture].decode())[0]:
        # Another version of matplotlib draws other pictures; all else must still be the same.
        for files in (ours, theirs):
            files["report.html"] = re.sub(rb"<svg .*?</svg>", b"", files["report.html"], flags=re.DOTALL)
        ours, theirs = ({n: c for n, c in f.items() if not n.endswith(".svg")} for f in (ours, theirs))
    assert ours == theirs


def test_the_folders_of_an_older_report_are_still_read(runs, report, tmp_path):
    """Version 0.1.0 stored each run in a folder, with its latency in a file beside."""
    for folder in runs.iterdir():
        role = json.loads((folder / "results.json").read_text())["args"]["stages"]
        (folder / "latency.json").write_text(json.dumps({role: {"milliseconds": 1.5, "device": "cpu"}}))
    report(runs, "--output_dir", tmp_path / "report")
    assert all(
        list(run.latency.values()) == [{"milliseconds": 1.5, "device": "cpu"}]
        for run in read_runs(tmp_path / "report")
    )
    assert "pareto-latency.svg" in (tmp_path / "report" / "report.md").read_text()


def test_latencies_of_several_devices_are_in_no_picture(runs, report, tmp_path):
    for folder in runs.iterdir():
        role = json.loads((folder / "results.json").read_text())["args"]["stages"]
        device = "cuda (a GPU)" if "kdp" in folder.name else "cpu"
        (folder / "latency.json").write_text(json.dumps({role: {"milliseconds": 1.5, "device": device}}))
    report(runs, "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "pareto-latency" not in text and "several devices and are not compared: cpu; cuda" in text


def test_a_damaged_line_is_named(runs, report, tmp_path, capsys):
    report(runs, "--output_dir", tmp_path / "report")
    file = tmp_path / "report" / "runs.jsonl"
    file.write_text(file.read_text().replace('"name"', '"nam', 1))
    with pytest.raises(SystemExit):
        report(file, "--output_dir", tmp_path / "report")
    assert f"{file}, line 1: this is not a stored run" in capsys.readouterr().err


def test_the_folder_of_runs_of_an_older_report_may_still_be_named(runs, report, tmp_path):
    report(runs, "--output_dir", tmp_path / "report")
    before = written(tmp_path / "report")
    report(tmp_path / "report" / "runs", "--output_dir", tmp_path / "report")
    assert written(tmp_path / "report") == before


def test_methods_of_a_users_own_are_reported(runs, report, tmp_path):
    for file in runs.glob("l2p-kd*/results.json"):
        results = json.loads(file.read_text())
        method = {"kd": "copy", "kdp": "kdp"}[results["args"]["distillation"]]
        classifier = {"linear": "linear", "ncm": "knn"}[results["args"]["classifier"]]
        results["args"] |= {"prompt_method": "shared", "distillation": method, "classifier": classifier}
        file.write_text(json.dumps(results))
    report(runs, "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.index("#### L2P") < text.index("#### shared") < text.index("#### knn")
    assert text.index("| student, KDP | **51.47") < text.index("| student, copy | 33.67")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """The current folder, for relative names of folders."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def student(distillation: str, *arguments: str) -> tuple[str, ...]:
    return "--stages", "student", "--prompt_method", "l2p", "--distillation", distillation, *arguments


def test_streams_of_two_lengths_have_a_picture_of_costs_each(report, tmp_path):
    write_run(tmp_path / "runs", "five", 0, 60, *student("none"), "--num_tasks", "5")
    write_run(tmp_path / "runs", "ten", 0, 40, *student("none"), "--num_tasks", "10")
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    for num_tasks, accuracy in ((5, 60), (10, 40)):
        section = text.split(f"### Accuracy against cost, {num_tasks} tasks\n")[1].split("\n###")[0]
        assert f"(pareto-parameters-{num_tasks}.svg)" in section
        assert f"| L2P, student alone | 1,000,000 | {accuracy:.2f} |" in section


def write_measured_run(folder: Path, name: str, seed: int, measured: dict, *arguments: str) -> None:
    """A run that has more metrics than others."""
    write_run(folder, name, seed, 50, *arguments)
    file = folder / f"{name}-seed{seed}" / "results.json"
    results = json.loads(file.read_text())
    results["student"] |= measured
    file.write_text(json.dumps(results))


def test_metrics_that_some_runs_have_get_columns(report, tmp_path):
    for seed in range(3):
        write_run(tmp_path / "runs", "l2p-none", seed, 50, *student("none"))
        measured = {"a_auc": 40.0 + seed, "task_known_accuracy": 91.0, "right_task_share": 61.0 + seed}
        write_measured_run(tmp_path / "runs", "l2p-kd", seed, measured, *student("kd"))
        of_ncm = {"task_known_accuracy": 81.0, "right_task_share": 71.0 - seed}
        write_measured_run(tmp_path / "runs", "ncm", seed, of_ncm, *student("kd"), "--classifier", "ncm")
    measured = {"task_known_accuracy": 95.0, "right_task_share": 55.0}
    write_run(tmp_path / "runs", "old", 1, 50, *student("kdp"))
    write_measured_run(tmp_path / "runs", "old", 0, measured, *student("kdp"))
    report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| learning accuracy (%) | A_AUC (%) | forgetting (points) |" in text and "A_AUC is the area" in text
    assert re.search(r"\| student, KD \|[^\n]* \| 41\.00 ± 1\.00 \| 4\.50 ± 0\.00 \|", text)
    assert re.search(r"\| student alone \|[^\n]* \|  \| 4\.50 ± 0\.00 \|", text), "an older run has none"
    by_task = text.split("### Task-known accuracy")[1].split("\n###")[0]
    assert "| L2P | student, KD | trained head | 50.00 ± 0.00 | 91.00 ± 0.00 | 62.00 ± 1.00 |" in by_task
    assert "| L2P | student, KD | nearest class mean | 50.00 ± 0.00 | 81.00 ± 0.00 | 70.00 ± 1.00 |" in by_task
    assert "alone" not in by_task and "KDP" not in by_task, "not of a part of the runs"
    head, *lines = csv.DictReader((tmp_path / "report" / "results.csv").read_text().splitlines())
    found = {line["run"]: (line["a_auc"], line["task_known_accuracy"], line["right_task_share"]) for line in lines}
    assert found["l2p-none"] == ("", "", "") and found["l2p-kd"] == ("42.0", "91.0", "63.0")
    assert "<th" in (page := (tmp_path / "report" / "report.html").read_text()) and "task-known accuracy (%)" in page


def test_runs_of_others_are_in_the_same_tables_with_where_they_come_from(runs, elsewhere, report):
    for seed in range(3):
        write_run(elsewhere / "anna" / "runs", "mine", seed, 40 + 2 * seed, *student("dist"))
    write_run(elsewhere / "bob", "l2p-none", 0, 36, *student("none"))
    write_run(elsewhere / "bob", "l2p-kd", 0, 37, *student("kd"))
    shutil.copy("bob/l2p-kd-seed0/results.json", "bob/sent.json")
    report("runs", "--others", "anna/runs", "bob/l2p-none-seed0", "bob/sent.json", "--output_dir", "report")
    text = Path("report/report.md").read_text()
    # no difference to the student alone of the runs, which may have been trained otherwise
    assert "| student, DIST (from anna/runs) | 42.00 ± 2.00 |  |" in text
    assert text.count("Where it has no student alone of its own, no difference to one is shown.") == 1
    assert "| student alone (from bob) | 36.00 |  |" in text
    assert "| student, KD (from bob) | 37.00 | +1.00 |" in text  # to his own student alone
    for sentence in ("3 runs of anna/runs, marked by that name.", "2 runs of bob, marked by that name."):
        assert f"- From elsewhere: {sentence}" in text
    assert "\nbob/sent,0,quickdraw100,10," in Path("report/results.csv").read_text()
    before = written(Path("report"))
    report("report", "--output_dir", "report")
    assert written(Path("report")) == before


def test_the_results_of_one_run_are_a_report(runs, elsewhere, report):
    report("runs/l2p-kd-seed0/results.json", "--output_dir", "a")
    report("runs/l2p-kd-seed0", "--output_dir", "b")
    assert written(Path("a")) == written(Path("b")) and "l2p-kd,0,quickdraw100" in Path("a/results.csv").read_text()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r: r["stream"].update(source="food"), "data set food instead of quickdraw100"),
        (lambda r: r["args"].update(class_order="seeded"), "class order seeded instead of natural"),
        (lambda r: r["stream"]["class_names"].reverse(), "other classes"),
        (lambda r: r["stream"].update(train=[2000] * 10), "20,000 instead of 40,000 training images"),
        (lambda r: r["stream"].update(test=[500] * 10), "5,000 instead of 10,000 images to test on"),
        (
            lambda r: (r.update(tested_on="validation"), r["stream"].update(validation=[1000] * 10)),
            "tested on validation instead of test images",
        ),
        (
            lambda r: r["stream"].update(num_tasks=5, classes_per_task=[20] * 5),
            "5 instead of 10 tasks",
        ),
    ],
)
def test_runs_of_others_that_cannot_be_compared_are_kept_apart(elsewhere, report, spoil, reason):
    write_run(elsewhere / "runs", "l2p-none", 0, 40, *student("none"))
    write_run(elsewhere / "anna", "mine", 0, 90, *student("dist"))
    file = Path("anna/mine-seed0/results.json")
    results = json.loads(file.read_text())
    spoil(results)
    file.write_text(json.dumps(results))
    report("runs", "--others", "anna", "--output_dir", "report")
    text = Path("report/report.md").read_text().replace("\\", "")
    sentence = "- From elsewhere: 1 run of anna, marked by that name; not compared with the runs here where they have "
    assert f"{sentence}{reason}." in text
    (table,) = [table for table in re.findall(r"(?:^\|.*\n)+", text, re.M) if "vs. alone" in table and "anna" in table]
    assert "| student alone |" not in table
    titles = re.findall("^## .*", text, re.M)
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r: r["stream"].update(classes_per_task=[19, *[9] * 9]), "other tasks than l2p-kd"),
        (
            lambda r: r["stream"]["class_names"].reverse(),
            "another order of the classes than other runs of stream seed 0",
        ),
    ],
)
def test_tasks_that_only_look_alike_are_refused(elsewhere, report, capsys, spoil, reason):
    write_run(elsewhere / "runs", "l2p-kd", 0, 40, *student("kd", "--class_order", "seeded"))
    write_run(elsewhere / "anna", "mine", 0, 90, *student("dist", "--class_order", "seeded"))
    file = Path("anna/mine-seed0/results.json")
    results = json.loads(file.read_text())
    spoil(results)
    file.write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        report("runs", "--others", "anna", "--output_dir", "report")
    assert f"anna/mine-seed0 has {reason} and cannot be compared: report it apart" in capsys.readouterr().err
    assert not Path("report").exists()


def test_own_runs_of_other_tasks_are_refused(report, tmp_path, capsys):
    """A student alone of another stream would be compared with them."""
    for name in ("none", "kd"):
        write_run(tmp_path / "runs", f"l2p-{name}", 0, 40, *student(name))
    file = tmp_path / "runs" / "l2p-kd-seed0" / "results.json"
    results = json.loads(file.read_text())
    results["stream"]["classes_per_task"] = [19, *[9] * 9]
    file.write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        report(tmp_path / "runs", "--output_dir", tmp_path / "report")
    assert "other tasks than l2p-" in capsys.readouterr().err


def test_a_run_made_again_loses_the_latency_of_the_earlier():
    earlier, later = (
        RunResults("run", {"x": x}, {"student": {"milliseconds": 1.0, "device": "cpu"}} if x == 1 else {})
        for x in (1, 2)
    )
    assert merge_runs([earlier], [later])[0].latency == {}
    assert merge_runs([earlier], [RunResults("run", {"x": 1})])[0].latency == earlier.latency


def test_two_folders_of_one_name_are_refused(elsewhere, report, capsys):
    for place in ("a/runs", "b/runs", "runs"):
        write_run(elsewhere / place, "l2p-kd", 0, 40, *student("kd"))
    paths = [elsewhere / "a" / "runs", elsewhere / "b" / "runs"]
    with pytest.raises(SystemExit):
        report("runs", "--others", *paths, "--output_dir", "report")
    assert "two folders of runs from elsewhere are called 'runs'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report("runs", "--others", "a/runs", "a/runs/l2p-kd-seed0", "--output_dir", "report")
    assert "two runs from elsewhere are called 'a/runs/l2p-kd-seed0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output_dir", "file"), "file is a file: name a folder with --output_dir"),
        (("--output_dir", "report", "--space", "file/space"), "cannot read or write file/space: Not a directory"),
        (("--output_dir", "file/report"), "cannot read or write file/report"),
    ],
)
def test_folders_that_cannot_be_made_are_named(elsewhere, report, capsys, arguments, message):
    write_run(elsewhere / "runs", "l2p-kd", 0, 40, *student("kd"))
    Path("file").touch()
    with pytest.raises(SystemExit):
        report("runs", *arguments)
    assert message in capsys.readouterr().err and not Path("report").exists()


def test_runs_of_two_people_whose_folders_share_a_name_are_not_mixed(elsewhere, report, capsys):
    write_run(elsewhere / "runs", "l2p-kd", 0, 40, *student("kd"))
    for name, accuracy in (("anna", 41), ("bob", 42)):
        write_run(elsewhere / name / "report", "l2p-kd", 0, accuracy, *student("kd"))
    report("runs", "--others", elsewhere / "anna" / "report", "--output_dir", "report")
    before = written(Path("report"))
    for source, output in (("runs", "report"), ("report", "new")):
        with pytest.raises(SystemExit):
            report(source, "--others", elsewhere / "bob" / "report", "--output_dir", output)
        assert "report/l2p-kd-seed0 is in the report already, with other results" in capsys.readouterr().err
    assert written(Path("report")) == before and not Path("new").exists()
    report("runs", "--others", elsewhere / "anna" / "report", "--output_dir", "report")  # the same ones again
    assert written(Path("report")) == before


def test_a_static_space_has_the_page_and_says_what_it_is(elsewhere, report, capsys):
    write_run(elsewhere / "runs", "l2p-kd", 0, 40, *student("kd", "--dataset", "a_b: #c"))
    report("runs", "--output_dir", "report", "--space", "space")
    assert "hf upload <name> space --repo-type space" in capsys.readouterr().out
    pages = written(Path("space"))
    assert (
        pages.keys() == {"README.md", "index.html"} and pages["index.html"] == written(Path("report"))["report.html"]
    )
    _, header, text = pages["README.md"].decode().split("---\n")
    about = yaml.safe_load(header)
    assert about["sdk"] == "static" and about["app_file"] == "index.html" and text.strip()
    assert about["title"] == "a_b: #c: report of 1 run"
    with pytest.raises(SystemExit):
        report("runs", "--output_dir", "other", "--space", "space")
    assert "space exists; name a new folder" in capsys.readouterr().err and not Path("other").exists()
