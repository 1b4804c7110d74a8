"""First section of a report, made from its runs: what was compared, which student is best, what distillation adds."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..escaping import markdown_name
from ..evaluation import tasks_of
from .effects import contenders, effects_over_prompts, finding, grouped, listed, of_the_stream
from .experiments import CLASSIFIER_TITLES, Experiment
from .statistics import MIN_RUNS, MeanStd, best_of, binomial_half_width

ACCURACY = (
    "A_N is the accuracy on all classes after the last task, the mean over the tasks; models predict without the task "
    "id."
)
FORGETTING = (
    "Forgetting is in points, by the definition `cdl`. Learning accuracy is the accuracy on each task right after it "
    "was learned, the mean over the tasks: A_N is learning accuracy less forgetting."
)
SPREAD = "± is the standard deviation over the runs."
INTERVALS = (
    "Brackets give the 95% confidence interval of a difference: Student's t over the differences of runs with the "
    "same class order and seed, averaged over the seeds of each order where there are several orders. The p value "
    "after it is corrected by Holm's method for all differences of the same kind in its table or picture; a "
    "difference is called significant where p is below 0.05, and its marker in a picture is filled. **Bold** in a "
    "table marks the student that is significantly better than each other student of its column."
)
ONLINE = "A_AUC is the area under the accuracy on the classes seen so far, over the training images shown."
FEW = "With fewer than three runs of a model, differences have no interval, and none is called significant."
FILES = "All figures are in [results.csv](results.csv), arguments and results of each run in [runs.jsonl](runs.jsonl)."


def what_was_compared(experiments: list[Experiment]) -> list[str]:
    """Sentences on the data, the models, the training and the runs of one benchmark."""
    benchmark = experiments[0].benchmark
    return [
        _data(experiments),
        f"Models: {benchmark.teacher} teaches {benchmark.student}. {_methods(experiments)}",
        _training(experiments),
        _runs(experiments),
        _sampling_error(experiments),
    ]


def who_won(experiments: list[Experiment]) -> list[str]:
    """Sentences on the best student and on distillation, for each number of tasks of one benchmark."""
    sentences = []
    streams = [e for e in experiments if not e.is_joint] or experiments
    lengths = grouped(streams, lambda e: e.stream["num_tasks"])
    for num_tasks, members in lengths.items():
        where = f" of {num_tasks} tasks" if len(lengths) > 1 else ""
        role, best = contenders(members)
        sentences.append(f"Best {role}{where}: {_best(best)}.")
        trained = [e for e in members if e.classifier == "linear" and e.prompt_method != "none"]
        effects = effects_over_prompts(trained)
        if effects:
            text = finding(effects, {e.learner: e.technique for e in trained})
            over = len({e.prompts for e in trained})
            means = f", means over {over} prompt methods" if over > 1 else ""
            sentences.append(f"Distillation{where}, with trained heads{means}: {text}.")
    return sentences


def how_to_read(experiments: Iterable[Experiment]) -> str:
    """Notation, as far as the report uses it, and its files."""
    experiments = list(experiments)
    counts = {len(e.results) for e in experiments}
    parts = [ACCURACY]
    if any(not e.is_joint for e in experiments):
        parts.append(FORGETTING)
    if any(e.metric("a_auc") for e in experiments):
        parts.append(ONLINE)
    if max(counts) > 1:
        parts.append(SPREAD)
    if max(counts) >= MIN_RUNS and len(experiments) > 1:
        parts.append(INTERVALS)
    if min(counts) < MIN_RUNS:
        parts.append(FEW)
    return " ".join([*parts, FILES])


def code_of_runs(experiments: Iterable[Experiment]) -> dict[tuple[str, str], set[str]]:
    """Names of the runs by the commit and by the versions that they were made with, the most frequent first."""
    found: dict[tuple[str, str], set[str]] = {}
    for e in experiments:
        for unit, result in e.results.items():
            found.setdefault(code_of(result), set()).add(e.runs[unit])
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def code_of(result: Mapping[str, Any]) -> tuple[str, str]:
    """The commit, `not recorded` in runs of earlier versions and of an installed package, and the versions."""
    versions = {name: number for name, number in result["versions"].items() if number and name != "commit"}
    return result["versions"].get("commit") or "not recorded", ", ".join(f"{n} {v}" for n, v in versions.items())


def mixture(experiments: Iterable[Experiment]) -> list[str]:
    """A sentence where the runs were made with different code, else nothing."""
    experiments = list(experiments)
    codes = code_of_runs(experiments)
    if len(codes) < 2:
        return []
    mixed = sum(len({code_of(result) for result in e.results.values()}) > 1 for e in experiments)
    models = f"{mixed} models mix" if mixed > 1 else "one model mixes"
    within = f"; {models} them among its runs" if mixed == 1 else f"; {models} them among their runs" if mixed else ""
    numbers = listed(f"{len(names)}" for names in codes.values())
    return [
        f"Caution: {numbers} of the runs were made with different commits or versions{within}. Differences between "
        "such runs may come from the code: see How it was made."
    ]


def _data(experiments: list[Experiment]) -> str:
    stream, split = experiments[0].stream, experiments[0].benchmark.tested_on
    lengths = sorted({e.stream["num_tasks"] for e in experiments if not e.is_joint})
    num_classes = sum(stream["classes_per_task"])
    tasks = f"in {listed(lengths)} tasks" if lengths else "in one task"
    first = next((e.stream for e in experiments if not e.is_joint), stream)
    if len(lengths) == 1 and "domains" in first:
        names = listed(dict.fromkeys(first["domains"]))
        tasks = f"in {lengths[0]} {tasks_of(first)} ({names})"
    elif len(lengths) == 1:
        sizes = sorted(set(first["classes_per_task"]))
        tasks += f" of {sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f" of {sizes[0]}"
    joint = ", and all at once (joint training)" if lengths and any(e.is_joint for e in experiments) else ""
    per_class = [
        f"{sum(stream[part]) / num_classes:.3g} {name}" for part, name in (("train", "training"), (split, split))
    ]
    total = f"{sum(stream[split]):,} {split} images"
    source = experiments[0].benchmark.source
    return f"Data: {source}, {num_classes} classes {tasks}{joint}; {listed(per_class)} images a class, {total} in all."


def _methods(experiments: list[Experiment]) -> str:
    kinds = {
        "Prompts": {e.prompts: None for e in experiments},
        "distillation": {e.technique: None for e in of_the_stream(experiments) if e.distillation != "none"},
        "classifiers": dict.fromkeys(title for key, title in CLASSIFIER_TITLES.items() if _uses(experiments, key)),
    }
    shown = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    return "; ".join(shown) + "."


def _uses(experiments: list[Experiment], classifier: str) -> bool:
    return any(e.classifier == classifier for e in experiments)


def _training(experiments: list[Experiment]) -> str:
    epochs = sorted({e.args["num_train_epochs"] for e in experiments})
    sizes = sorted({e.args["batch_size"] for e in experiments})
    unit = "epoch" if epochs == [1] else "epochs"
    return f"Training: {listed(epochs)} {unit} a task, batches of {listed(sizes)} images."


def _runs(experiments: list[Experiment]) -> str:
    units = sorted({unit for e in experiments for unit in e.results})
    orders, seeds = (sorted({unit[i] for unit in units}) for i in (0, 1))
    names = {name for e in experiments for name in e.runs.values()}
    kind = experiments[0].benchmark.class_order
    kind = kind if len(kind) < 30 else "given"
    counts = sorted({len(e.results) for e in experiments})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"Runs: {len(names)}, {each} of each of {len(experiments)} models."
    text = text if len(experiments) > 1 else f"Runs: {len(names)}."
    if len(orders) > 1:
        text += f" They have {len(orders)} class orders ({kind}, stream seeds {listed(orders)})"
        if len(units) == len(orders) == len(seeds):
            text += ", each with a seed of its own"
        elif len(seeds) > 1:
            text += f" and {len(seeds)} seeds each"
        text += "."
        return f"{text} Runs of a model differ in the order of the classes and in what a seed varies."
    text += f" All have the same class order ({kind})."
    if len(seeds) == 1:
        return f"{text} One run says nothing about the noise between runs."
    return (
        f"{text} The seeds {listed(seeds)} vary initial weights and the order and augmentation of images, not the "
        "class order or the data: how far the results hold for others, these runs cannot say."
    )


def _sampling_error(experiments: list[Experiment]) -> str:
    """How uncertain one accuracy is by the number of test images alone."""
    count, split = experiments[0].benchmark.num_tested_on, experiments[0].benchmark.tested_on
    means = [MeanStd.of(e.accuracy).mean for e in experiments]
    accuracy = min(means, key=lambda mean: abs(mean - 50))
    return (
        f"Sampling error of the {split} images: ±{binomial_half_width(accuracy, count):.2f} points for a single A_N, "
        f"half the width of its 95% binomial interval with {count:,} images (at {accuracy:.1f}%, where it is widest "
        "here). Where runs test the same images, ± and the intervals over runs do not include it."
    )


def _best(contenders: list[Experiment]) -> str:
    names = {e.name: e for e in contenders}
    best, others = best_of({e.name: e.accuracy for e in contenders})
    text = f"{names[best].label}, A_N {MeanStd.of(names[best].accuracy)}%"
    if not others:
        return f"{text}, and the only one" if len(names) == 1 else text
    nearest = min(others, key=lambda name: others[name].difference.mean)
    text += f"; next: {names[nearest].label}, at a distance of {others[nearest]}"
    if all(other.p_value is None for other in others.values()):
        return text
    equal = sum(not other.is_better for other in others.values())
    if not equal:
        return f"{text}; significantly better than each of the {len(others)} others"
    return f"{text}; significantly better than {len(others) - equal or 'none'} of the {len(others)} others"


def versions_table(experiments: Iterable[Experiment]) -> list[list[str]]:
    """Rows of commit, versions and number of runs."""
    codes = code_of_runs(experiments)
    return [[markdown_name(commit), markdown_name(text), str(len(names))] for (commit, text), names in codes.items()]
