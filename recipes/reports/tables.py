"""The report's tables: in Markdown, and all figures as CSV."""

from collections.abc import Mapping

from cdl_hf.comparison.experiments import Setting
from cdl_hf.escaping import csv_table

CSV_COLUMNS = (
    *("run", "seed", "data", "tasks", "class_order", "teacher", "student", "role", "prompts", "learner", "head"),
    *("average_accuracy", "average_accuracy_by_image", "average_incremental_accuracy"),
    *("forgetting_cdl", "forgetting_max", "forgetting_bwt", "forgetting_coda"),
    *("parameters", "trainable_parameters", "latency_ms", "seconds"),
)

Rows = list[list[str]]


def table(header: list[str], rows: Rows, numbers_from: int = 1) -> str:
    """Markdown; the columns from `numbers_from` on are set right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def as_csv(settings: list[Setting], measured: Mapping) -> str:
    """A line for each model of each run."""
    rows = [CSV_COLUMNS]
    for s in settings:
        latency = measured.get((s.name, s.role), {}).get("milliseconds", "")
        for seed, result in s.results.items():
            of_model = result[s.role]
            rows.append(
                [
                    *(s.name, seed, s.scene[0], s.stream["num_tasks"], s.scene[1]),
                    *(s.args["teacher"], s.args["student"], s.role, s.prompts, s.learner, s.head),
                    *(round(of_model[name], 4) for name in CSV_COLUMNS[11:14]),
                    *(round(of_model["forgetting"][name], 4) for name in ("cdl", "max", "bwt", "coda")),
                    *(parameters(s), of_model["trainable_parameters"], latency, s.seconds[seed]),
                ]
            )
    return csv_table(rows)


def parameters(s: Setting) -> int:
    """What predicts, with the numbers that a computed classifier keeps for it."""
    of_model = next(iter(s.results.values()))[s.role]
    return of_model["parameters"] + of_model.get("classifier_values", 0)
