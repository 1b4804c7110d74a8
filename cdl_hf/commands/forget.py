"""Classes that a finished model must forget.

    cdl-hf forget runs/my_run --classes tapir lemur --output_dir runs/my_models
    cdl-hf forget my_student --classes tapir --dataset my_images --output_dir my_new_student    # RanPAC

MODEL is a run (its teacher and student both forget), a saved model, or the name of one on the Hub. Class means (ncm)
are afterwards as if they had never seen images of these classes. So is RanPAC, up to rounding, if it gets the training
images of these classes once more, in the same precision. A run finds them again itself, whatever part of its data set
they are; --dataset says where they are now if they have moved. For models elsewhere, such as those of `cdl-hf learn`,
--dataset and its options are those of the command that learned these classes; after a validation split or
--max_samples_per_class they cannot forget: let the run forget, and learn again. A trained head (linear) only loses the
rows of these classes. A student of closed-form distillation cannot forget.

Exit code: 0 all is done; 2 a mistake in the arguments, or the model cannot forget these classes; 1 all else.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments.config import CDLConfig
from ..arguments.stream import DatasetArguments
from ..cli import argument, cli_error, parse
from ..runs.interruptions import interruptible

if TYPE_CHECKING:
    from datasets import Dataset

    from ..hub.learned_models import LearnedModels


@dataclass
class EarlierImages(DatasetArguments):
    """The images that the classes were learned from, for RanPAC."""

    dataset: str | None = argument(  # type: ignore[assignment]  # only RanPAC needs one
        "The data set of `cdl-hf train` or `cdl-hf learn`", None, unset="that of the run, where MODEL is one"
    )

    def __post_init__(self):
        for f in fields(self):
            if self.dataset is None and getattr(self, f.name) != f.default:
                raise ValueError(f"{f.name} needs dataset: it is an option of the images for RanPAC")


@dataclass
class ForgetArguments:
    """The model, and what it forgets."""

    model: str = argument("Folder of a run or of a saved model, or the name of a model on the Hub", positional=True)
    classes: list[str] = argument("Names of the classes to forget")
    output_dir: str = argument("New folder for the models without these classes")
    seed: int = argument(
        "Seed of the images that were held out, where there is no test split: --stream_seed of `cdl-hf train`, --seed "
        "of `cdl-hf learn`",
        0,
        min=0,
    )


@interruptible()
def main(argv: list[str] | None = None) -> None:
    images, args = parse((EarlierImages, ForgetArguments), argv, description=__doc__)

    from ..hub.learned_models import LearnedModels, check_new_folder
    from ..runs.distributed import build_accelerator
    from ..training.exits import exit_on_failure
    from ..training.further_learning import forget

    output, config = Path(args.output_dir), CDLConfig()
    args.classes = list(dict.fromkeys(args.classes))
    try:
        check_new_folder(output)
        source = LearnedModels.load(args.model)
        accelerator = build_accelerator(config, output)
        train = _images_to_take_back(source, images, args)
        for model in source.models.values():
            with exit_on_failure(None, accelerator):
                forget(model.to(accelerator.device), args.classes, train, source.image_processor, config, accelerator)
    except ValueError as error:
        cli_error(str(error))

    with exit_on_failure(None, accelerator):
        source.save(output, accelerator, {"forgotten_classes": args.classes})
    if accelerator.is_main_process:
        left = next(iter(source.models.values())).config.seen_classes
        forgot = "1 class" if len(args.classes) == 1 else f"{len(args.classes)} classes"
        print(f"forgot {forgot}: {', '.join(args.classes)}; {left} are left\noutput: {output}")


def _images_to_take_back(source: "LearnedModels", images: EarlierImages, args: ForgetArguments) -> "Dataset | None":
    """The images that the classes were learned from, for models that need them.

    Raises:
        ValueError: They cannot be loaded, or are not those that a run has learned from.
    """
    from ..data import load_image_dataset
    from ..models.growth import names_of
    from ..training.build import source_options
    from ..training.run_images import own_training_images, run_of

    configs = [model.config for model in source.models.values()]
    if images.dataset is None and all(config.head != "ranpac" for config in configs):
        return None
    run, names = run_of(args.model), names_of(configs[0])
    if run is not None and not source.has_learned and set(args.classes) <= set(names):
        given = images if images.dataset is not None else None
        found = own_training_images(run, names, args.classes, given)
        if found is not None:
            return found
    if images.dataset is None:
        return None
    return load_image_dataset(images.dataset, **source_options(images), seed=args.seed)["train"]


if __name__ == "__main__":
    main()
