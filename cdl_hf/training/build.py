"""From arguments to the objects of a run: accelerator, stream, teacher, student, image processor, method."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from transformers import BaseImageProcessor

from ..data import TaskStream, image_processor_for, load_image_dataset
from ..data.splits import class_order
from ..distillation import METHODS, TrainingObjective
from ..models import PretrainedBackbone, PromptViTForImageClassification, load_backbone
from ..models.prompt_pools import POOLS
from ..utils import derive_seed
from .arguments import CDLConfig, DatasetArguments, DistillationArguments, ModelArguments, StreamArguments
from .task_checkpoints import TaskCheckpoints, check_states, describe_stream


@dataclass
class Learners:
    """What learns, and what prepares its images.

    Args:
        teacher: `None` where the student learns alone.
        method: Owns the student; `None` where only a teacher is trained.
        image_processor: Serves both models.
        backbones: Role -> the backbone it stands on.
        query_backbone: What makes the teacher's query, if it is not the teacher's own.
    """

    teacher: PromptViTForImageClassification | None
    method: TrainingObjective | None
    image_processor: BaseImageProcessor
    backbones: dict[str, PretrainedBackbone]
    query_backbone: PretrainedBackbone | None


def source_options(arguments: DatasetArguments) -> dict[str, Any]:
    """What `load_image_dataset` takes of the arguments besides the data set's name."""
    return {f.name: getattr(arguments, f.name) for f in fields(DatasetArguments) if f.name != "dataset"}


def build_stream(stream_args: StreamArguments) -> TaskStream:
    """The stream of tasks.

    Raises:
        ValueError: The data set or the split is not to be had; the message says why.
    """
    dataset = load_image_dataset(stream_args.dataset, **source_options(stream_args), seed=stream_args.stream_seed)
    order = stream_args.class_order
    if order == "split_file":
        if stream_args.split_file is None:
            raise ValueError(
                "class_order=split_file takes the order from the targets of split_file, and none is given: name the "
                "list, or take class_order=natural"
            )
        order = class_order(stream_args.split_file, dataset.folders)
    elif isinstance(order, str) and order not in ("natural", "seeded"):
        order = order.split(",")
    return TaskStream(
        dataset,
        num_tasks=stream_args.num_tasks,
        classes_per_task=stream_args.classes_per_task,
        first_task_classes=stream_args.first_task_classes,
        class_order=order,
        seed=stream_args.stream_seed,
        validation_fraction=stream_args.validation_fraction,
        max_samples_per_class=stream_args.max_samples_per_class,
    )


def load_pair(model_args: ModelArguments, pretrained: bool = True) -> tuple[PretrainedBackbone, PretrainedBackbone]:
    """Teacher's and student's backbones, for images of the same size.

    Args:
        pretrained: Whether to load their weights.

    Raises:
        ValueError: A backbone cannot be loaded, or its patches do not fit the images.
    """
    size = {} if model_args.image_size is None else {"img_size": model_args.image_size}
    weights = {"weights": model_args.student_weights, "pretrained": pretrained}
    student = load_backbone(model_args.student, **weights, **size)
    side = student.module.patch_embed.img_size[0]
    weights["weights"] = model_args.teacher_weights
    teacher = load_backbone(model_args.teacher, **weights, **size)
    if teacher.module.patch_embed.img_size[0] != side:
        teacher = load_backbone(model_args.teacher, **weights, img_size=side)
    for role, backbone in (("teacher", teacher), ("student", student)):
        patch = backbone.module.patch_embed.patch_size[0]
        if side % patch:
            raise ValueError(
                f"images of {side} pixels cannot be cut into the {role}'s patches of {patch}: choose an image_size "
                "that is a multiple of both models'"
            )
    return teacher, student


def build_learners(
    stream: TaskStream,
    model_args: ModelArguments,
    distillation_args: DistillationArguments,
    training_args: CDLConfig,
    *,
    pretrained: bool = True,
) -> Learners:
    """Teacher, student, method and image processor, their new parameters drawn from the seed.

    A given teacher that has learnt all classes at once knows them from the start.

    Args:
        pretrained: Whether the backbones have their weights; without, nothing is downloaded.

    Raises:
        ValueError: There is no given teacher, or it is of another stream, a backbone cannot be loaded, or prompts and
            backbones do not fit; the message says why.
    """
    stages, distillation = training_args.stages, distillation_args.distillation
    is_given = training_args.student_run is not None
    if stages == "student" and distillation != "none" and training_args.teacher_run is None and not is_given:
        raise ValueError(
            f"distillation={distillation} needs a teacher: train both stages, or name a run with teacher_run"
        )
    if training_args.num_train_epochs == 0 and stages != "teacher" and distillation != "none" and not is_given:
        raise ValueError(
            f"num_train_epochs=0 trains nothing, so that {distillation} cannot distil: take distillation=none"
        )
    if model_args.prompt_method == "apt" and training_args.teacher_merge == "after_student":
        if training_args.teacher_run is not None:
            raise ValueError("teacher_run brings a teacher that is merged already: take teacher_merge=own_stage")
        if training_args.cache_teacher_outputs and stages == "both":
            raise ValueError(
                "cache_teacher_outputs needs a teacher that is merged in its own stage: take teacher_merge=own_stage"
            )
    teacher_backbone, student_backbone = load_pair(model_args, pretrained)
    prompts = {
        "classes_per_task": stream.classes_per_task,
        "prompt_method": model_args.prompt_method,
        "pool_size": model_args.pool_size,
        "prompt_length": model_args.prompt_length,
        "prompt_blocks": model_args.prompt_blocks,
        "top_k": model_args.top_k,
        "g_prompt_length": model_args.g_prompt_length,
        "g_prompt_blocks": model_args.g_prompt_blocks,
        "ortho_weight": model_args.ortho_weight,
        "ema_decay": model_args.ema_decay,
        "head": model_args.classifier,
        "ranpac_width": model_args.ranpac_width,
    }
    teacher = method = query = None
    backbones = {}
    if stages != "student" or training_args.teacher_run is not None:
        set_seed(derive_seed(training_args.seed, "teacher"))
        takes_students = model_args.query == "student" and POOLS[model_args.prompt_method].needs_query
        query = student_backbone if takes_students else None
        given = (
            None if training_args.teacher_run is None else TaskCheckpoints(Path(training_args.teacher_run), "teacher")
        )
        at_once = given is not None and check_states(given, describe_stream(stream))
        tasks = [len(stream.class_names)] if at_once else stream.classes_per_task
        teacher = PromptViTForImageClassification.from_backbone(
            teacher_backbone, query, **{**prompts, "classes_per_task": tasks}
        )
        if at_once:
            teacher.start_task(stream.class_names)
        backbones["teacher"] = teacher_backbone
    if stages != "teacher":
        set_seed(derive_seed(training_args.seed, "student"))
        method_class = METHODS[distillation]
        student = PromptViTForImageClassification.from_backbone(
            student_backbone,
            **prompts,
            kd_branch=method_class.kd_branch,
            kd_alpha=distillation_args.kd_alpha,
            kd_prompt_length=distillation_args.kd_prompt_length,
            kd_prompt_blocks=distillation_args.kd_prompt_blocks,
            teacher_width=teacher_backbone.module.embed_dim if method_class.kd_branch == "cdl_prompt" else None,
        )
        if distillation == "none" or is_given:
            method = TrainingObjective(student)
        else:
            method = method_class(
                student, teacher, kd_alpha=distillation_args.kd_alpha, temperature=distillation_args.temperature
            )
        backbones["student"] = student_backbone
    side = student_backbone.module.patch_embed.img_size[0]
    data_config = {**student_backbone.pretrained_cfg, "input_size": (3, side, side)}
    if model_args.crop_pct is not None:
        data_config["crop_pct"] = model_args.crop_pct
    if model_args.interpolation is not None:
        data_config["interpolation"] = model_args.interpolation
    processor = image_processor_for(data_config, normalization=model_args.normalization)
    return Learners(teacher, method, processor, backbones, query)
