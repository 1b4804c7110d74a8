"""What a teacher adds in closed form to the best head that its student has alone, with controls.

    python recipes/closed_form.py --output recipes/quickdraw100/closed_form.json
    python recipes/closed_form.py --dataset FOLDER --teacher NAME --student NAME --orders 5

Reads the features of both frozen backbones once, and computes all heads on them along the stream, for several class
orders and seeds (of the random projections). Prints the final accuracy of each head and its paired difference to the
student's best own head, which is chosen by its test accuracy: a choice in favor of the controls. All other choices are
made on held-out training images. With --reference, the difference is to the best own head of another student.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from cdl_hf.arguments.stream import DatasetArguments
from cdl_hf.cli import argument, cli_error, parse, to_dict

OWN = "own: "  # begins the names of heads that need no teacher


@dataclass
class ClosedFormArguments:
    """The pair, the stream and the heads."""

    teacher: str = argument("Backbone of the teacher, named as for train.py", "vit_micro_quickdraw")
    student: str = argument("Backbone of the student", "vit_nano_quickdraw")
    num_tasks: int = argument("Number of tasks", 10, min=1)
    orders: int = argument("Number of class orders: the natural one, and seeded ones", 3, min=1)
    seeds: int = argument("Number of seeds for each order", 3, min=1)
    ranpac_width: int = argument("Random features of each RanPAC head", 2000, min=1)
    analytic_width: int = argument("Random features that predict the teacher's features", 2000, min=1)
    analytic_groups: int | None = argument(
        "Equal parts of the student's features; each of these random features reads one",
        None,
        unset="one for each token of a transformer",
        min=1,
    )
    teacher_layers: int = argument("Last layers of the teacher that its classifier reads", 1, min=1)
    teacher_patch_means: bool = argument("Whether that reads means of the patches, too", False)
    max_samples_per_class: int | None = argument("Maximum number of images of a class", None, unset="all", min=1)
    reference: str | None = argument(
        "JSON file of another student, whose best own head is what the differences are to", None, unset="this student"
    )
    output: str | None = argument("JSON file for all figures", None)


def main() -> None:
    dataset_args, args = parse((DatasetArguments, ClosedFormArguments), description=__doc__)
    from cdl_hf.utils import versions, write_text

    made_with = versions()
    try:
        reference = None if args.reference is None else read_reference(dataset_args, args)
        features = read_features(dataset_args, args)
    except ValueError as error:
        cli_error(str(error))
    scores: dict[str, dict[str, float]] = {}
    units = [(order, seed) for order in range(args.orders) for seed in range(args.seeds)]
    for order, seed in tqdm(units, desc="class orders and seeds"):
        for head, accuracy in accuracies(features, args, order, seed).items():
            scores.setdefault(head, {})[f"order {order}, seed {seed}"] = accuracy
    print(table(scores, reference))
    if args.output is not None:
        values = {name: value for name, value in to_dict((dataset_args, args)).items() if name != "output"}
        content = {"args": values, "versions": made_with, "accuracy": scores}
        write_text(Path(args.output), json.dumps(content, indent=1) + "\n")


def read_reference(dataset_args: DatasetArguments, args: ClosedFormArguments) -> dict[str, dict[str, float]]:
    """Accuracy of each head of the reference by class order and seed.

    Raises:
        ValueError: The file cannot be read, or is of another stream, other seeds, or heads of another width.
    """
    try:
        content = json.loads(Path(args.reference or "").read_text())
        scores, theirs = content["accuracy"], content["args"]
        theirs["dataset"] = Path(theirs["dataset"]).name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"reference: {args.reference} is no file of --output ({error})") from error
    ours = {**vars(dataset_args), **vars(args), "dataset": Path(dataset_args.dataset).name}
    names = ("dataset", "test_split", "num_tasks", "max_samples_per_class", "orders", "seeds", "ranpac_width")
    other = [f"{name} {theirs.get(name)}, not {ours[name]}" for name in names if theirs.get(name) != ours[name]]
    if other:
        raise ValueError(f"reference: {args.reference} cannot be compared: it has {'; '.join(other)}")
    return scores


@dataclass
class Features:
    """Features of a data set under the eval transform.

    Args:
        labels: Class ids of the training and test images, in the natural order of the classes.
        student: The student's, of all blocks, of the training, mirrored training and test images, each (n, W).
        teacher: What the teacher's classifier reads of the same.
        last: Width of the student's last class token, the end of W.
        groups: Of the projection that predicts the teacher's features.
    """

    labels: dict[str, torch.Tensor]
    student: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]
    last: int
    groups: int


def read_features(dataset_args: DatasetArguments, args: ClosedFormArguments) -> Features:
    """
    Raises:
        ValueError: The data set or a backbone cannot be loaded, or the classes cannot be divided into the tasks.
    """
    from cdl_hf import TaskStream, load_image_dataset
    from cdl_hf.arguments.config import ModelArguments
    from cdl_hf.data import TaskImages, eval_transform, image_processor_for
    from cdl_hf.data.class_order import task_sizes
    from cdl_hf.models import PromptViTForImageClassification
    from cdl_hf.training.build import load_pair, source_options
    from cdl_hf.training.classifier_fitting import head_features

    options = source_options(dataset_args)
    splits = load_image_dataset(dataset_args.dataset, **options)
    task_sizes(splits["train"].features["label"].num_classes, args.num_tasks, None, None)  # refused before the work
    stream = TaskStream(splits, num_tasks=1, max_samples_per_class=args.max_samples_per_class)
    teacher_backbone, student_backbone = load_pair(ModelArguments(teacher=args.teacher, student=args.student))
    common = {"classes_per_task": stream.classes_per_task, "prompt_method": "none", "head": "ranpac"}
    teacher = PromptViTForImageClassification.from_backbone(
        teacher_backbone, **common, ranpac_layers=args.teacher_layers, ranpac_patch_means=args.teacher_patch_means
    )
    width = teacher.network.width(teacher.readout)
    student = PromptViTForImageClassification.from_backbone(
        student_backbone,
        **common,
        kd_branch="analytic",
        teacher_width=width,
        analytic_groups=args.analytic_groups,
    )
    side = student.network.image_size
    transform = eval_transform(image_processor_for({**student_backbone.pretrained_cfg, "input_size": (3, side, side)}))
    accelerator = Accelerator()
    found = Features({}, {}, {}, student.network.embed_dim, student.config.analytic_groups)
    for model, of_model in ((student, found.student), (teacher, found.teacher)):
        model.to(accelerator.device)
        for split in ("train", "test"):
            images = TaskImages(getattr(stream[0], split), stream.label_to_class_id, transform)
            for name, mirrored in ((split, False), ("mirrored", True)):
                if split == "train" or not mirrored:
                    read, labels = head_features(accelerator, model, images, 256, 0, mirrored=mirrored)
                    of_model[name], found.labels[name] = read[:, 0], labels
    return found


def accuracies(features: Features, args: ClosedFormArguments, order: int, seed: int) -> dict[str, float]:
    """Accuracy in % after the last task of each head, mean over the tasks.

    Args:
        order: 0 for the natural class order.
        seed: Of the random projections.
    """
    from cdl_hf.data.class_order import task_sizes
    from cdl_hf.models import PromptViTConfig
    from cdl_hf.models.analytic import AnalyticHead
    from cdl_hf.models.classifiers import RanPAC
    from cdl_hf.utils import derive_seed

    num_classes = int(features.labels["train"].max()) + 1
    drawn = torch.randperm(num_classes, generator=torch.Generator().manual_seed(derive_seed(order, "order")))
    class_ids = drawn.argsort() if order else torch.arange(num_classes)
    sizes = task_sizes(num_classes, args.num_tasks, None, None)
    device = features.labels["train"].device
    labels = {split: class_ids.to(device)[of_split] for split, of_split in features.labels.items()}
    x, z, last = features.student, features.teacher, slice(-features.last, None)

    torch.manual_seed(derive_seed(seed, "heads", order))
    widths = {"ranpac_width": args.ranpac_width, "analytic_width": args.analytic_width}
    common = {"classes_per_task": sizes, "prompt_method": "none", "head": "ranpac", **widths}

    def ranpac(width: int) -> RanPAC:
        head = RanPAC(PromptViTConfig(**common), width)
        head.init_weights()
        return head.to(device)

    def analytic(targets: dict[str, torch.Tensor]) -> AnalyticHead:
        width = targets["train"].shape[1]
        config = PromptViTConfig(**common, kd_branch="analytic", teacher_width=width, analytic_groups=features.groups)
        head = AnalyticHead(config, x["train"].shape[1])
        for module in (head.predictor, head.classifier, head):
            module.init_weights()
        return head.to(device)

    token = {split: of_split[:, last] for split, of_split in x.items()}
    inputs = {
        "last token": token,
        "last token, another projection": token,
        "all layers": x,
        "all layers, another projection": x,
    }
    own = {name: ranpac(of_split["train"].shape[1]) for name, of_split in inputs.items()}
    teacher = ranpac(z["train"].shape[1])
    predicting = {"teacher": (analytic(z), z), "own token": (analytic(token), token)}
    seen = 0
    for size in sizes:
        rows = ((labels["train"] >= seen) & (labels["train"] < seen + size)).nonzero()[:, 0]
        seen += size
        of_task = labels["train"][rows]
        for name, head in own.items():
            head.fit(inputs[name]["train"][rows], of_task)
        teacher.fit(z["train"][rows], of_task)
        left_out = rows[teacher.held_out(of_task)]
        base = own["last token"].held_out_scores(token["train"][left_out], seen)
        for head, targets in predicting.values():
            mirrored = (x["mirrored"][rows], targets["mirrored"][rows])
            head.fit(x["train"][rows], targets["train"][rows], of_task, mirrored)
            head.choose_scores(x["train"][left_out], targets["train"][left_out], labels["train"][left_out], base)

    scores = {name: head(inputs[name]["test"], num_classes) for name, head in own.items()}
    first, second = scores["last token"], scores.pop("last token, another projection")
    every, other = scores["all layers"], scores.pop("all layers, another projection")
    found = {
        f"{OWN}last token": first,
        f"{OWN}all layers": every,
        f"{OWN}last token, two projections": first + second,
        f"{OWN}all layers, two projections": every + other,
        f"{OWN}last token and all layers": first + every,
    }
    for target, (head, _) in predicting.items():
        theirs = head.classifier(head.predictor(x["test"]), num_classes)
        prefix = "predicted" if target == "teacher" else f"{OWN}predicted"
        found[f"{prefix} {target}"] = theirs
        found[f"{prefix} {target} and last token"] = first + theirs
        if target == "teacher":
            found["predicted teacher and all layers"] = every + theirs
            found["analytic, as chosen by held-out images"] = head(x["test"], first)
    found["teacher"] = teacher(z["test"], num_classes)
    return {name: task_accuracy(of_head, labels["test"], sizes) for name, of_head in found.items()}


def task_accuracy(scores: torch.Tensor, labels: torch.Tensor, sizes: list[int]) -> float:
    """Accuracy in %, mean over the tasks."""
    right, seen, shares = scores.argmax(1) == labels, 0, []
    for size in sizes:
        shares.append(right[(labels >= seen) & (labels < seen + size)].float().mean().item())
        seen += size
    return 100 * sum(shares) / len(shares)


def table(scores: dict[str, dict[str, float]], reference: dict[str, dict[str, float]] | None = None) -> str:
    """A Markdown table: mean and deviation of each head, and its difference to the best head of the student's own.

    Args:
        reference: Scores of another student, whose best own head takes that place.
    """
    from cdl_hf.comparison.experiments import Unit
    from cdl_hf.comparison.statistics import MeanStd, paired_difference

    def unit(run: str) -> Unit:
        order, seed = (int(part.split()[1]) for part in run.split(", "))
        return Unit(order, seed)

    def by_unit(scores: dict[str, dict[str, float]]) -> dict[str, dict[Unit, float]]:
        return {head: {unit(run): score for run, score in of_head.items()} for head, of_head in scores.items()}

    heads = by_unit(scores)
    compared = heads if reference is None else by_unit(reference)
    own = [head for head in compared if head.startswith(OWN)]
    best = max(own, key=lambda head: MeanStd.of(compared[head]).mean)
    of_whom = "" if reference is None else " of the reference"
    lines = [f"| head | final accuracy A_N (%) | difference to {best}{of_whom} |", "|---|---:|---:|"]
    for head, of_head in heads.items():
        is_compared = reference is None and head == best
        difference = "" if is_compared else str(paired_difference(of_head, compared[best]))
        lines.append(f"| {head} | {MeanStd.of(of_head)} | {difference} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
