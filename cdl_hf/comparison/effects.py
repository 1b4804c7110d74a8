"""What distillation adds: differences of students to the student alone, for each prompt method and over all."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .experiments import Experiment
from .statistics import Comparison, Scores, compare, significantly_best

Effects = Mapping[str, Comparison]  # by learner


def effects_by_prompts(
    experiments: Iterable[Experiment], scores: Callable[[Experiment], Scores]
) -> dict[str, Effects]:
    """For each prompt method, the differences of its students to its student alone.

    Args:
        experiments: Experiments with one classifier, on one benchmark and stream.
        scores: What is compared, such as A_N.
    """
    found: dict[str, Effects] = {}
    for prompts, members in grouped(experiments, lambda e: e.prompts).items():
        students = [e for e in members if e.role == "student"]
        references = [(e, student_alone(e, students)) for e in students]
        found[prompts] = compare({e.learner: (scores(e), scores(r)) for e, r in references if r and r is not e})
    return found


def student_alone(e: Experiment, students: Iterable[Experiment]) -> Experiment | None:
    """The student alone that another is compared with, the one with the most arguments in common.

    It is from the same place, as that of another place may have been trained otherwise: `None` if there is none.
    """

    def distance(alone: Experiment) -> int:
        return sum(alone.args.get(name) != value for name, value in e.args.items())

    own = (each for each in students if each.distillation == "none" and each.origin == e.origin)
    return min(own, key=distance, default=None)


def effects_over_prompts(experiments: Iterable[Experiment]) -> Effects:
    """Differences in A_N to the student alone, for each run the mean over the prompt methods that a learner has."""
    experiments = list(experiments)
    pairs = {}
    for learner, members in grouped(experiments, lambda e: e.learner).items():
        is_taught = members[0].distillation not in (None, "none")
        alone = [ref for e in members if (ref := student_alone(e, [x for x in experiments if x.prompts == e.prompts]))]
        if is_taught and len(alone) == len(members):
            pairs[learner] = mean_accuracy(members), mean_accuracy(alone)
    return compare(pairs)


def finding(effects: Effects, techniques: Mapping[str, str]) -> str:
    """A sentence on which distillation methods are better or worse than the student alone.

    Args:
        effects: At least one.
        techniques: Names of the distillation methods by learner.
    """
    largest = max(effects, key=lambda learner: effects[learner].difference.mean)
    name, mean = techniques[largest], f"{effects[largest].difference.mean:+.2f} points"
    if all(effect.p_value is None for effect in effects.values()):
        return f"{name} differs most from the student alone: {mean}, from too few runs for an interval"
    clear = [learner for learner, effect in effects.items() if effect.is_significant]
    better = [techniques[learner] for learner in clear if effects[learner].difference.mean > 0]
    worse = [techniques[learner] for learner in clear if effects[learner].difference.mean < 0]
    words = []
    if better:
        which = listed(better) if len(better) <= 3 else f"{len(better)} of {len(effects)} methods"
        gain = f": {mean}" if better == [name] else ""
        words.append(
            f"{which} {'is' if len(better) == 1 else 'are'} significantly better than the student alone{gain}"
        )
    elif len(effects) == 1:
        words.append(f"{name} is not significantly better than the student alone: {mean}")
    else:
        words.append(f"None of {len(effects)} methods is significantly better than the student alone")
    if worse:
        which = listed(worse) if len(worse) <= 3 else f"{len(worse)} of {len(effects)} methods"
        words.append(f"{which} {'is' if len(worse) == 1 else 'are'} significantly worse")
    if len(effects) > 1 and better != [name]:
        words.append(f"the largest difference is that of {name}, {mean}")
    return "; ".join(words)


def best_student(experiments: Iterable[Experiment]) -> str | None:
    """Learner that is significantly best, among the students that learn a stream: see [`of_the_stream`]."""
    return significantly_best({e.learner: e.accuracy for e in of_the_stream(experiments)})


def of_the_stream(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Students that learn several tasks, from a teacher that does as well."""
    return [e for e in experiments if e.role == "student" and not e.is_joint and not e.has_joint_teacher]


def contenders(experiments: list[Experiment]) -> tuple[str, list[Experiment]]:
    """Role and experiments of which the best is named: students of a stream, else others, else teachers."""
    students = [e for e in experiments if e.role == "student"]
    best = of_the_stream(students) or students
    return ("student", best) if best else ("teacher", experiments)


def mean_accuracy(experiments: list[Experiment]) -> Scores:
    """Mean A_N of the experiments, for each class order and seed that all have."""
    units = set.intersection(*(set(e.accuracy) for e in experiments))
    return {unit: statistics.fmean(e.accuracy[unit] for e in experiments) for unit in sorted(units)}


def grouped(experiments: Iterable[Experiment], key: Callable[[Experiment], Any]) -> dict[Any, list[Experiment]]:
    groups: dict[Any, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(key(experiment), []).append(experiment)
    return groups


def listed(names: Iterable[object]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last
