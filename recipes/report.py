"""A report of finished runs: report.md, results.csv and report.html, one page that needs nothing else.

    python recipes/report.py runs/compare --output_dir recipes/quickdraw100/report

The `results.json` of every run in the folder is first stored under runs/ in the output folder; the report is made of
what is stored there, in the same bytes each time. findings.md in the output folder, where there is one, is put in.
"""

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from cdl_hf.evaluation.pareto import pareto_front
from cdl_hf.evaluation.plots import plot_accuracy_against_cost, plot_accuracy_over_tasks
from cdl_hf.evaluation.settings import Setting, settings_of
from cdl_hf.evaluation.statistics import Spread, clear_best, paired_difference
from cdl_hf.training.arguments import RUN, DistillationArguments, ModelArguments
from cdl_hf.training.parser import parse, refuse, to_dict

RECIPES = Path(__file__).parent
PROMPTS = get_args(ModelArguments.__dataclass_fields__["prompt_method"].type)
DISTILLATION = get_args(DistillationArguments.__dataclass_fields__["distillation"].type)
HEADS = ("linear", "aligned", "ncm", "ranpac")
HEAD_NAMES = {"linear": "trained head", "aligned": "aligned head", "ncm": "nearest class mean", "ranpac": "RanPAC"}
CSV_COLUMNS = (
    *("run", "seed", "data", "tasks", "class_order", "teacher", "student", "role", "prompts", "learner", "head"),
    *("average_accuracy", "average_accuracy_by_image", "average_incremental_accuracy"),
    *("forgetting_cdl", "forgetting_max", "forgetting_bwt", "forgetting_coda"),
    *("parameters", "trainable_parameters", "latency_ms", "seconds"),
)
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border: 1px solid #d0d7de; padding: .3rem .7rem } th { background: #f6f8fa }
img { max-width: 100% }
code { background: #f6f8fa; padding: .1rem .3rem } pre code { display: block; overflow-x: auto }
"""

Rows = list[list[str]]


@dataclass
class ReportArguments:
    """The report."""

    runs: str = field(metadata={"help": "folder with the folders of runs", "positional": True})
    output_dir: str = field(metadata={"help": "folder of the report and of the stored results"})
    measure_latency: bool = field(
        default=False, metadata={"help": "time one image on a saved model of each setting, and store that as well"}
    )


def main() -> None:
    (args,) = parse((ReportArguments,), description=__doc__)
    runs, output = Path(args.runs), Path(args.output_dir)
    try:
        if not any(runs.glob("*/results.json")):
            raise ValueError(f"{runs} has no folder of a finished run, with a results.json")
        store(runs, output / "runs")
        if args.measure_latency:
            measure_latency(runs, output / "runs")
        settings = settings_of(stored(output / "runs"))
    except ValueError as error:
        refuse(str(error))
    build(settings, latencies(output / "runs", settings), output)
    print(f"{output / 'report.md'}, report.html and results.csv tell of {len(settings)} settings.")


def store(runs: Path, folder: Path) -> None:
    """Copies what is small; of the paths of this machine only the last part is kept.

    Raises:
        ValueError: A file is not what a run leaves.
    """
    for file in sorted(runs.glob("*/results.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            paths = ("output_dir", "teacher_from", "student_from", "split_file", "teacher_weights", "student_weights")
            shortened = {n: Path(content["args"][n]).name for n in paths if content["args"].get(n) is not None}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not what a run leaves: {error}") from error
        content["args"] |= shortened
        target = folder / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by the name of the run, arguments that are newer than a run with their defaults.

    Raises:
        ValueError: A run is too old to tell how large its classifier is.
    """
    defaults, found = to_dict(parse(RUN, [])), {}
    for file in sorted(folder.glob("*/results.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        args = defaults | content["args"]
        models = [content[role] for role in ("teacher", "student") if role in content]
        if args["head"] != "linear" and not all("classifier_values" in of_model for of_model in models):
            raise ValueError(f"{file} does not tell how large its classifier is, as runs of today do: run it again")
        found[file.parent.name] = content | {"args": args}
    return found


def measure_latency(runs: Path, folder: Path) -> None:
    """Writes latency.json beside the stored results of the first seed of each setting whose model is there.

    Raises:
        ValueError: A model cannot be loaded.
    """
    import torch

    from cdl_hf.evaluation.speed import latency
    from cdl_hf.hub.saved_models import load_saved_model

    for setting in settings_of(stored(folder)):
        names = [name for name in setting.runs.values() if (runs / name / setting.role / "config.json").is_file()]
        if names:
            model = load_saved_model(runs / names[0] / setting.role).model
            side = model.backbone.patch_embed.img_size[0]
            milliseconds = latency(model, torch.zeros(1, 3, side, side, device=model.device), repeats=100)
            file = folder / names[0] / "latency.json"
            known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            device = f"{model.device.type}, {torch.get_num_threads()} thread(s)"
            known[setting.role] = {"milliseconds": round(milliseconds, 3), "device": device}
            file.write_text(json.dumps(known) + "\n", encoding="utf-8")


def latencies(folder: Path, settings: list[Setting]) -> dict[tuple[str, str], dict[str, Any]]:
    """What was measured, by name and role of the setting."""
    found = {}
    for setting in settings:
        for name in setting.runs.values():
            file = folder / name / "latency.json"
            if file.is_file():
                measured = json.loads(file.read_text(encoding="utf-8"))
                if setting.role in measured:
                    found.setdefault((setting.name, setting.role), measured[setting.role])
    return found


def build(settings: list[Setting], measured: dict[tuple[str, str], dict[str, Any]], output: Path) -> None:
    """Writes report.md with its pictures, results.csv and report.html."""
    settings = sorted(settings, key=order)
    scenes: dict[tuple, list[Setting]] = {}
    for setting in settings:
        scenes.setdefault(setting.scene, []).append(setting)
    findings = output / "findings.md"
    parts = [introduction(settings)]
    if findings.is_file():
        parts.append(findings.read_text(encoding="utf-8").strip())
    for number, members in enumerate(scenes.values(), 1):
        parts += Scene(members, measured, output, f"-{number}" if len(scenes) > 1 else "").sections()
    parts.append(how_it_was_made(settings, measured))
    text = "\n\n".join(part for part in parts if part) + "\n"
    (output / "report.md").write_text(text, encoding="utf-8")
    (output / "results.csv").write_text(as_csv(settings, measured), encoding="utf-8")
    (output / "report.html").write_text(as_page(text, output), encoding="utf-8")


def order(setting: Setting) -> tuple:
    place = -1 if setting.distillation is None else DISTILLATION.index(setting.distillation)
    prompts = (PROMPTS.index(setting.prompts) + 1) % len(PROMPTS)  # frozen transformers, none, come first
    return setting.scene, -setting.stream["num_tasks"], prompts, place, setting.note, HEADS.index(setting.head)


class Scene:
    """What the report says of the settings on one stream of data, for one pair of models.

    Args:
        settings: In their order.
        measured: Latencies by name and role.
        output: Folder for the pictures.
        suffix: Of their names.
    """

    def __init__(self, settings: list[Setting], measured: dict, output: Path, suffix: str):
        self.settings, self.measured, self.output, self.suffix = settings, measured, output, suffix
        source, class_order, stream_seed, teacher, student, tested_on = settings[0].scene
        self.source, self.teacher, self.student = source, teacher, student
        drawn = "" if class_order == "natural" else f", classes in the order {class_order} {stream_seed}"
        split = "" if tested_on == "test" else f", tested on {tested_on} images"
        self.title = f"{source}: {teacher} teaches {student}{drawn}{split}"

    def sections(self) -> list[str]:
        parts = [f"## {self.title}"]
        streams = sorted({setting.stream["num_tasks"] for setting in self.settings if not setting.at_once})
        for tasks in streams:
            members = [s for s in self.settings if s.stream["num_tasks"] == tasks]
            in_words = f", {tasks} tasks" if len(streams) > 1 else ""
            parts += [self.methods(members, in_words), self.heads(members, in_words)]
        parts += [self.baselines(), self.reported(), self.cost_and_accuracy(), self.training_cost()]
        return parts

    def methods(self, members: list[Setting], in_words: str) -> str:
        """What each distillation method comes to, and the curves."""
        by_prompts = grouped([s for s in members if s.head == "linear" and s.prompts != "none"], lambda s: s.prompts)
        parts = [f"### Distillation methods{in_words}"] if by_prompts else []
        for prompts, learners in by_prompts.items():
            students = [s for s in learners if s.role == "student"]
            alone = next((s for s in students if s.distillation == "none"), None)
            best = clear_best({s.learner: s.accuracy for s in students})
            rows = []
            for s in learners:
                differs = ["", ""]
                if s.role == "student" and alone is not None and s is not alone:
                    pairs = (paired_difference(a, b) for a, b in zip(figures(s), figures(alone), strict=True))
                    differs = ["" if pair is None else str(pair) for pair in pairs]
                accuracy = bold(str(Spread.of(s.accuracy)), s.learner == best and s.role == "student")
                rows.append([s.learner, accuracy, differs[0], str(Spread.of(s.forgetting)), differs[1], seeds_of(s)])
            header = ["learner", "A_N (%)", "against none", "forgetting (points)", "against none", "seeds"]
            name = f"curves-{prompts}-{learners[0].stream['num_tasks']}{self.suffix}.svg"
            self.curves(learners, members, name)
            parts += [f"#### {prompts}", table(header, rows), f"![Accuracy over the stream: {prompts}]({name})"]
        return "\n\n".join(parts)

    def curves(self, learners: list[Setting], members: list[Setting], name: str) -> None:
        floors = {s.role: s for s in members if s.prompts == "none" and s.head == "ncm"}
        plot_accuracy_over_tasks(
            {s.learner: s.matrix() for s in learners},
            self.output / name,
            f"{self.source}: {learners[0].prompts}, seeds {seeds_of(learners[0])}",
            classes_per_task=learners[0].stream["classes_per_task"],
            references={f"class means, {role}": Spread.of(s.accuracy).mean for role, s in floors.items()},
        )

    def heads(self, members: list[Setting], in_words: str) -> str:
        """Other classifiers on the same prompts, in pairs with the trained heads."""
        rows = []
        for learner in grouped([s for s in members if s.prompts != "none"], lambda s: (s.prompts, s.learner)).values():
            by_head = {s.head: s for s in learner}
            if by_head.keys() > {"linear"}:
                best = clear_best({head: s.accuracy for head, s in by_head.items()})
                cells = []
                for head in HEADS:
                    cell = str(Spread.of(by_head[head].accuracy)) if head in by_head else ""
                    if head in by_head and head != "linear":
                        difference = paired_difference(by_head[head].accuracy, by_head["linear"].accuracy)
                        cell = f"{bold(cell, head == best)}<br>{difference or ''}"
                    cells.append(bold(cell, head == best) if head == "linear" else cell)
                rows.append([learner[0].prompts, learner[0].learner, *cells])
        if not rows:
            return ""
        told = (
            "A_N in %, and below it the difference to the trained head. The prompts are the same: an aligned head is "
            "the trained one after classifier alignment, the others are computed from all classes' features."
        )
        header = ["prompts", "learner", *(HEAD_NAMES[head] for head in HEADS)]
        return "\n\n".join([f"### Classifiers{in_words}", told, table(header, rows, numbers_from=2)])

    def baselines(self) -> str:
        """Frozen transformers, and all classes at once."""
        several = len({s.stream["num_tasks"] for s in self.settings if not s.at_once}) > 1
        lines: dict[str, dict[str, Setting]] = {}
        for s in self.settings:
            if s.prompts == "none" or s.at_once:
                stream = f", {s.stream['num_tasks']} tasks" if several and not s.at_once else ""
                lines.setdefault(baseline_name(s) + stream, {})[s.role] = s
        if not lines:
            return ""
        cells = [
            [name, *(str(Spread.of(of[role].accuracy)) if role in of else "" for role in ("teacher", "student"))]
            for name, of in lines.items()
        ]
        told = (
            "A_N in %, of the teacher's model and of the student's. Where all classes come at once, nothing can be "
            "forgotten and all classes are compared: it is what the same training, of as many epochs, comes to "
            "without a stream. A student of a teacher that saw all classes at once sees them at once as well."
        )
        return "\n\n".join(["### Baselines", told, table(["", self.teacher, self.student], cells)])

    def reported(self) -> str:
        """Figures of the papers beside those measured here."""
        papers = reported_figures(self.source, self.teacher, self.student)
        rows = []
        for s in self.settings:
            if (s.prompts, s.distillation) in papers and s.head == "linear" and not s.at_once and not s.note:
                ours = f"{Spread.of(s.accuracy)} / {Spread.of(s.forgetting)}"
                rows.append([s.prompts, s.learner, papers[s.prompts, s.distillation], ours, seeds_of(s)])
        if not rows:
            return ""
        told = (
            "A_N / F_N in %. *Reported* are the figures of the methods' authors (arXiv 2407.13911), *measured* those "
            "of the runs in this report."
        )
        header = ["prompts", "learner", "reported by the papers", "measured here", "seeds"]
        return "\n\n".join(["### Beside the papers", told, table(header, rows, numbers_from=2)])

    def cost_and_accuracy(self) -> str:
        """The Pareto pictures."""
        continual = [s for s in self.settings if not s.at_once]
        if not continual:
            return ""
        costs = {"parameters": {full_name(s): parameters(s) for s in continual}}
        if all((s.name, s.role) in self.measured for s in continual):
            costs["latency"] = {full_name(s): self.measured[s.name, s.role]["milliseconds"] for s in continual}
        named = {"parameters": "Parameters that a prediction needs", "latency": "Latency of one image (ms)"}
        parts = ["### Accuracy against cost"]
        for kind, by_name in costs.items():
            groups: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
            for s in continual:
                group = "frozen" if s.prompts == "none" else s.prompts, s.role
                point = by_name[full_name(s)], Spread.of(s.accuracy).mean
                groups.setdefault(group, {})[full_name(s)] = point
            name = f"pareto-{kind}{self.suffix}.svg"
            plot_accuracy_against_cost(groups, self.output / name, self.title, named[kind])
            points = {name: point for members in groups.values() for name, point in members.items()}
            cost = "parameters" if kind == "parameters" else "ms"
            front = [
                [name, f"{points[name][0]:,.0f}" if kind == "parameters" else f"{points[name][0]:.2f}"]
                + [f"{points[name][1]:.2f}"]
                for name in pareto_front(points)
            ]
            parts += [
                f"![Accuracy against {kind}]({name})",
                f"No other setting has at most their {kind} and a higher mean accuracy:",
                table(["setting", cost, "A_N (%)"], front),
            ]
        if "latency" in costs:
            devices = sorted({self.measured[s.name, s.role]["device"] for s in continual})
            parts.append(f"Latencies are medians of 100 single images, on: {'; '.join(devices)}.")
        return "\n\n".join(parts)

    def training_cost(self) -> str:
        """Seconds and sizes."""
        rows = []
        for s in self.settings:
            if s.head == "linear":
                learnt = s.values("trainable_parameters")[next(iter(s.results))]
                stream = " at once" if s.at_once else ""
                prompts = ("frozen" if s.prompts == "none" else s.prompts) + stream
                seconds = f"{Spread.of(s.seconds).mean:,.0f}"
                rows.append([prompts, s.learner, f"{parameters(s):,}", f"{learnt:,}", seconds])
        told = (
            "Seconds of wall-clock time for the model's own stages, the mean over the seeds. They are noisy: runs may "
            "have shared their machine with others, and a student is spared what its teacher's run has stored."
        )
        header = ["prompts", "learner", "parameters", "of them learnt", "seconds (noisy)"]
        return "\n\n".join(["### Training cost", told, table(header, rows, numbers_from=2)])


def introduction(settings: list[Setting]) -> str:
    runs = {name for s in settings for name in s.runs.values()}
    told = (
        "A_N is the accuracy over all classes after the last task, each task with equal weight; no task is given at "
        "test time. Forgetting is in points, by the definition `cdl`. After ± stands the standard deviation over the "
        "seeds. In brackets is the 95% confidence interval of a difference: Student's t over the differences of runs "
        "with the same seed, not corrected for the number of comparisons. A figure is **bold** where it is the best "
        "of its kind and the interval of its difference to every other leaves out zero; with three seeds that takes "
        "a difference of two and a half times the differences' standard deviation."
    )
    files = "Each figure is in [results.csv](results.csv), and the `results.json` of each run under [runs](runs)."
    return "\n\n".join([f"# Report of {len(runs)} runs", told, files])


def how_it_was_made(settings: list[Setting], measured: Mapping) -> str:
    versions = {json.dumps(result["versions"], sort_keys=True) for s in settings for result in s.results.values()}
    told = [", ".join(f"{name} {number}" for name, number in json.loads(text).items()) for text in sorted(versions)]
    return "\n\n".join(
        [
            "## How it was made",
            "```\npython recipes/compare.py GRID.yaml --output_dir RUNS\n"
            f"python recipes/report.py RUNS --output_dir REPORT{' --measure_latency' if measured else ''}\n```",
            "Arguments are in each `results.json`. From what is stored the report is rebuilt by "
            "`python recipes/report.py REPORT/runs --output_dir REPORT`. Versions: " + "; ".join(told) + ".",
        ]
    )


def baseline_name(s: Setting) -> str:
    """What a baseline is, in words."""
    how = {
        "linear": "the head trained task after task",
        "aligned": "the head trained task after task and aligned",
        "ncm": "nearest class mean",
        "ranpac": "RanPAC",
    }
    if s.at_once:
        how = {"linear": "linear probe of all classes at once"} if s.prompts == "none" else {"linear": ""}
        how = {**{head: f"{name}, all classes at once" for head, name in HEAD_NAMES.items()}, **how}
    words = ["frozen" if s.prompts == "none" else s.prompts, how[s.head] or "all classes at once"]
    return ", ".join(words if s.distillation in (None, "none") else [*words, s.learner])


def reported_figures(source: str, teacher: str, student: str) -> dict[tuple[str, str | None], str]:
    """`A_N / F_N` by prompt method and learner (`None`: the teacher), from the page in the folder of the presets."""
    folder, found = RECIPES / source, {}
    for path in sorted(folder.glob("*_to_*.yaml")):
        preset = to_dict(parse(RUN, ["--config", str(path)]))
        if (preset["teacher"], preset["student"]) == (teacher, student):
            large, small = (size[0].upper() for size in path.stem.split("_to_"))
            alone = {f"ViT-{large} alone": None, f"ViT-{small} alone": "none"}
            row = rf"^\| {path.stem} \| `(\w+)` \| (?:`(\w+)`[^|]*|([^|`]+)) \| ([\d.]+ / [\d.]+) \|"
            page = (folder / "README.md").read_text(encoding="utf-8")
            for prompts, method, model, reported in re.findall(row, page, re.MULTILINE):
                found.setdefault((prompts, method or alone[model]), reported)
    return found


def figures(s: Setting) -> tuple:
    return s.accuracy, s.forgetting


def parameters(s: Setting) -> int:
    """What predicts, with the numbers that a computed classifier keeps for it."""
    of_model = next(iter(s.results.values()))[s.role]
    return of_model["parameters"] + of_model.get("classifier_values", 0)


def full_name(s: Setting) -> str:
    words = ["frozen" if s.prompts == "none" else s.prompts, s.learner]
    return ", ".join(words if s.head == "linear" else [*words, HEAD_NAMES[s.head]])


def seeds_of(s: Setting) -> str:
    return " ".join(map(str, s.results))


def grouped(settings: list[Setting], key: Callable[[Setting], Any]) -> dict[Any, list[Setting]]:
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(key(setting), []).append(setting)
    return groups


def bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def table(header: list[str], rows: Rows, numbers_from: int = 1) -> str:
    """Markdown; the columns from `numbers_from` on are set right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def as_csv(settings: list[Setting], measured: Mapping) -> str:
    """A line for each model of each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for s in settings:
        latency = measured.get((s.name, s.role), {}).get("milliseconds", "")
        for seed, result in s.results.items():
            of_model = result[s.role]
            writer.writerow(
                [
                    *(s.name, seed, s.scene[0], s.stream["num_tasks"], s.args["class_order"]),
                    *(s.args["teacher"], s.args["student"], s.role, s.prompts, s.learner, s.head),
                    *(round(of_model[name], 4) for name in CSV_COLUMNS[11:14]),
                    *(round(of_model["forgetting"][name], 4) for name in ("cdl", "max", "bwt", "coda")),
                    *(parameters(s), of_model["trainable_parameters"], latency, s.seconds[seed]),
                ]
            )
    return text.getvalue()


def as_page(markdown: str, folder: Path) -> str:
    """One HTML page with its pictures in it."""
    from markdown_it import MarkdownIt

    def embedded(match: re.Match) -> str:
        kind = {"svg": "svg+xml", "png": "png"}[match[1].rsplit(".")[-1]]
        content = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/{kind};base64,{content}"'

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    body = re.sub(r'src="(?!https?:)([^"]+\.(?:svg|png))"', embedded, body)
    title = markdown.splitlines()[0].lstrip("# ")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


if __name__ == "__main__":
    main()
