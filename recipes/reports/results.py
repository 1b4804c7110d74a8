"""What a report is made of: the results of runs, stored beside it, and latencies measured on their models."""

import json
from pathlib import Path
from typing import Any

from cdl_hf.cli import parse, to_dict
from cdl_hf.comparison.experiments import Setting, settings_of
from cdl_hf.escaping import portable, portable_arguments
from cdl_hf.training.arguments import RUN, with_present_names
from cdl_hf.utils import write_text

from .naming import DISTILLATION, HEADS, PROMPTS

PATHS = ("output_dir", "teacher_run", "student_run", "split_file", "teacher_weights", "student_weights")


def store(runs: Path, folder: Path) -> None:
    """Copies what is small; of the paths of this machine only the last part is kept, and no password.

    Raises:
        ValueError: A file is not what a run leaves.
    """
    for file in sorted(runs.glob("*/results.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            args = portable_arguments(content["args"])
            args |= {name: Path(args[name]).name for name in PATHS if args.get(name) is not None}
            source = portable(content["stream"]["source"] or "images")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not what a run leaves: {error}") from error
        content |= {"args": args, "stream": content["stream"] | {"source": source}}
        target = folder / file.parent.name / file.name
        write_text(target, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by the name of the run, arguments that are newer than a run with their defaults.

    Raises:
        ValueError: A run is too old to tell how large its classifier is, or is not one of this package.
    """
    defaults, found = to_dict(parse(RUN, [])), {}
    for file in sorted(folder.glob("*/results.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        args = defaults | with_present_names(content["args"])
        known = {"prompt_method": PROMPTS, "distillation": DISTILLATION, "classifier": HEADS}
        strange = [f"{name} {args[name]!r}" for name, choices in known.items() if args[name] not in choices]
        if strange:
            raise ValueError(f"{file} is not what a run leaves: it has the unknown {', '.join(strange)}")
        models = [content[role] for role in ("teacher", "student") if role in content]
        if args["classifier"] != "linear" and not all("classifier_values" in of_model for of_model in models):
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
            write_text(file, json.dumps(known) + "\n")


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
