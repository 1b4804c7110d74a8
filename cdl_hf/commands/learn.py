"""Further classes for a finished model, without its earlier images.

cdl-hf learn runs/my_run --dataset my_new_classes --output_dir runs/my_models
cdl-hf learn runs/my_run/student --dataset my_new_classes --output_dir my_student

MODEL is a run (its teacher and student both learn), a saved model, or the name of one on the Hub. The result is of the
same form, and can learn again. Classes are matched to known ones by their names: computed classifiers (ncm, ranpac)
also learn from more images of known classes. They take seconds, and nothing is trained. RanPAC and the closed-form
distillation need their sums over the earlier images, which `cdl-hf train --save_statistics` keeps. A trained head
(linear) learns the new classes as in a task of a run, with its prompts, and a student with its teacher.

Exit code: 0 all is done; 2 a mistake in the arguments, or the model cannot learn these classes; 1 all else.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..arguments.config import CDLConfig, DistillationArguments
from ..arguments.sets import recorded_defaults, with_present_names
from ..arguments.stream import DatasetArguments
from ..cli import argument, cli_error, parse
from ..runs.interruptions import interruptible


@dataclass
class NewImages(DatasetArguments):
    """The images to learn from."""

    dataset: str = argument("Folder of images, <class>/<image>; or a table, a saved data set, or a Hub name")


@dataclass
class LearnArguments:
    """The model, and how it learns."""

    model: str = argument("Folder of a run or of a saved model, or the name of a model on the Hub", positional=True)
    output_dir: str = argument("New folder for the models that know the new classes, too")
    num_train_epochs: int | None = argument("Epochs for a trained head", None, unset="as in the run, else 4", min=1)
    learning_rate: float | None = argument(
        "Adam's, for a trained head", None, unset="as in the run, else 0.005", min=0
    )
    seed: int = argument("Seed of all that is drawn", 0, min=0)


@interruptible()
def main(argv: list[str] | None = None) -> None:
    images, args = parse((NewImages, LearnArguments), argv, description=__doc__)

    from ..data import load_image_dataset
    from ..hub.learned_models import LearnedModels, check_new_folder
    from ..runs import distributed
    from ..training.build import source_options
    from ..training.exits import exit_on_failure
    from ..training.further_learning import FurtherLearning

    output = Path(args.output_dir)
    try:
        check_new_folder(output)
        source = LearnedModels.load(args.model)
        distillation, run_args = _arguments_of(source.record, args)
        accelerator = distributed.build_accelerator(run_args, output)
        splits = load_image_dataset(images.dataset, **source_options(images), seed=args.seed)
        models = {role: model.to(accelerator.device) for role, model in source.models.items()}
        with exit_on_failure(None, accelerator):
            learned = FurtherLearning(models, source.image_processor, distillation, run_args, accelerator).learn(
                splits["train"], splits["test"]
            )
    except ValueError as error:
        cli_error(str(error))

    with exit_on_failure(None, accelerator):
        event = {"dataset": Path(images.dataset).name, **asdict(learned)}
        source.save(output, accelerator, event, {**vars(distillation), **vars(run_args)})
    if accelerator.is_main_process:
        print(_summary(learned, models, output))


def _arguments_of(record: dict[str, Any] | None, args: LearnArguments) -> tuple[DistillationArguments, CDLConfig]:
    """How the student learns, and the hyper-parameters: those of the run, where there is one."""
    from ..distillation import METHODS

    values = {} if record is None else {**recorded_defaults(), **with_present_names(record["arguments"])}
    kept = {
        name: getattr(CDLConfig(), name)
        for name in ("output_dir", "report_to", "eval_steps", "teacher_run", "student_run")
    }
    values |= {**kept, "seed": args.seed, "resume_from_checkpoint": False, "overwrite_output_dir": False}
    values |= {"stages": "both", "gradient_accumulation_steps": 1, "cache_teacher_outputs": False}
    for name in ("num_train_epochs", "learning_rate"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)

    def of(argument_class):
        return argument_class(**{f.name: values[f.name] for f in fields(argument_class) if f.name in values})

    try:
        distillation, run_args = of(DistillationArguments), of(CDLConfig)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the arguments recorded of {args.model} are damaged: {error}") from error
    if distillation.distillation not in METHODS:
        raise ValueError(
            f"{args.model} was distilled by {distillation.distillation!r}, a method of other code: learn from Python"
        )
    return distillation, run_args


def _summary(learned, models, output: Path) -> str:
    """What was learned, how well, and where it is."""
    lines = []
    if learned.new_classes:
        lines.append(f"{len(learned.new_classes)} new classes: {', '.join(learned.new_classes)}")
    if learned.known_classes:
        lines.append(f"{len(learned.known_classes)} known classes: {', '.join(learned.known_classes)}")
    lines.append(f"learned from {learned.images:,} images in {learned.seconds:.1f} s")
    for role, (right, total) in learned.correct.items():
        among = models[role].config.seen_classes
        name = role if len(models) > 1 else "model"
        lines.append(f"{name}: {right} of {total} other images of these classes recognized, among all {among} classes")
    files = list(output.rglob("statistics.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e6
    kept = f"; {size:.1f} MB of it, statistics.safetensors, only to learn further classes" if files else ""
    return "\n".join([*lines, f"output: {output}{kept}"])


if __name__ == "__main__":
    main()
