"""From arguments to the objects of a run (stream, teacher, student, objective, image processor), and back."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from inspect import get_annotations
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig, DistillationArguments, HubArguments, ModelArguments
from ..arguments.stream import DatasetArguments, StreamArguments
from ..cli import ParsedArguments, to_dict
from ..data import TaskStream, image_processor_for, load_image_dataset
from ..data.splits import class_order
from ..distillation import METHODS, TrainingObjective
from ..distillation.analytic import Analytic
from ..distillation.logit_methods import KD
from ..models import PretrainedBackbone, PromptViTConfig, PromptViTForImageClassification, load_backbone
from ..models.networks import network_of
from ..models.prompt_pools import POOLS
from ..runs.task_checkpoints import TaskCheckpoints, describe_stream
from ..utils import derive_seed
from .online_evaluation import check_online


@dataclass
class ModelPair:
    """Teacher and student, and what prepares their images.

    Args:
        objective: Owns the student and knows the teacher; with `stages=teacher` it owns the teacher.
        image_processor: Serves both models.
    """

    objective: TrainingObjective
    image_processor: CLIPImageProcessor


_AT_ONCE = {"repeats_classes": False, "train_tasks": None}  # of a joint teacher
# Of a teacher without prompts: their fields are the student's, and may not fit its network.
_UNPROMPTED = {"prompt_method": "none", "query_block": None, "prompt_blocks": None}


def source_options(arguments: DatasetArguments) -> dict[str, Any]:
    """The arguments of `load_image_dataset` other than the data set's name."""
    return {f.name: getattr(arguments, f.name) for f in fields(DatasetArguments) if f.name != "dataset"}


def build_stream(stream_args: StreamArguments) -> TaskStream:
    """The stream of tasks.

    Raises:
        ValueError: The data set or the split cannot be loaded; the message says why.
    """
    dataset = load_image_dataset(stream_args.dataset, **source_options(stream_args), seed=stream_args.stream_seed)
    order: str | list[str] | list[int] = stream_args.class_order
    if order == "split_file":
        if stream_args.split_file is None:
            raise ValueError(
                "class_order=split_file takes the order from the targets of split_file, and none is given: name the "
                "list, or take class_order=natural"
            )
        assert dataset.folders is not None  # the list has divided what came in one split
        order = class_order(stream_args.split_file, dataset.folders)
    elif isinstance(order, str) and order not in ("natural", "seeded"):
        order = order.split(",")
    domains = stream_args.domain_order
    return TaskStream(
        dataset,
        num_tasks=stream_args.num_tasks,
        classes_per_task=stream_args.classes_per_task,
        first_task_classes=stream_args.first_task_classes,
        class_order=order,
        domain_order=domains.split(",") if isinstance(domains, str) and domains != "natural" else domains,
        disjoint_class_ratio=stream_args.disjoint_class_ratio,
        blurry_sample_ratio=stream_args.blurry_sample_ratio,
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
    size: dict[str, Any] = {} if model_args.image_size is None else {"img_size": model_args.image_size}
    weights: dict[str, Any] = {"weights": model_args.student_weights, "pretrained": pretrained}
    student = load_backbone(model_args.student, **weights, **size)
    side = network_of(student.module).image_size
    weights["weights"] = model_args.teacher_weights
    teacher = load_backbone(model_args.teacher, **weights, **size)
    if network_of(teacher.module).image_size != side:
        teacher = load_backbone(model_args.teacher, **weights, img_size=side)
    for role, backbone in (("teacher", teacher), ("student", student)):
        network = network_of(backbone.module)
        patch = network.module.patch_embed.patch_size[0] if network.blocks else 1
        if side % patch:
            raise ValueError(
                f"images of {side} pixels cannot be cut into the {role}'s patches of {patch}: choose an image_size "
                "that is a multiple of both models'"
            )
    return teacher, student


def build_models(
    stream: TaskStream,
    model_args: ModelArguments,
    distillation_args: DistillationArguments,
    training_args: CDLConfig,
    *,
    pretrained: bool = True,
) -> ModelPair:
    """Teacher, student, objective and image processor, their new parameters drawn from the seed.

    A teacher of joint training knows all classes from the start.

    Args:
        pretrained: Whether the backbones have their weights; without, nothing is downloaded.

    Raises:
        ValueError: There is no given teacher, or it is of another stream, a backbone cannot be loaded, or prompts and
            backbones do not fit; the message says why.
    """
    stages, distillation = training_args.stages, distillation_args.distillation
    method_class = METHODS[distillation]
    is_given = training_args.student_run is not None and method_class.trains
    if stages == "student" and distillation != "none" and training_args.teacher_run is None and not is_given:
        raise ValueError(
            f"distillation={distillation} needs a teacher: train both stages, or name a run with teacher_run"
        )
    if not method_class.trains and training_args.cache_teacher_outputs:
        raise ValueError(
            f"{distillation} reads the teacher's features and not its cached outputs: leave out cache_teacher_outputs"
        )
    if model_args.prompt_method in ("apt", "lora") and training_args.teacher_merge == "after_student":
        if training_args.teacher_run is not None:
            raise ValueError("teacher_run brings a teacher that is merged already: take teacher_merge=own_stage")
        if training_args.cache_teacher_outputs and stages == "both":
            raise ValueError(
                "cache_teacher_outputs needs a teacher that is merged in its own stage: take teacher_merge=own_stage"
            )
    teacher_backbone, student_backbone = load_pair(model_args, pretrained)
    prompts: dict[str, Any] = {
        "classes_per_task": stream.classes_per_task,
        "repeats_classes": stream.repeats_classes,
        "head": model_args.classifier,
        **{name: getattr(model_args, name) for name in _config_fields(ModelArguments)},
    }
    teacher = None
    if stages != "student" or training_args.teacher_run is not None:
        set_seed(derive_seed(training_args.seed, "teacher"))
        of_teacher = prompts | (_UNPROMPTED if model_args.teacher_prompt_method == "none" else {})
        needs_query_pass = POOLS[of_teacher["prompt_method"]].needs_query and of_teacher["query_block"] is None
        takes_students = model_args.query == "student" and needs_query_pass
        query = student_backbone if takes_students else None
        run = training_args.teacher_run
        is_joint = run is not None and TaskCheckpoints(Path(run), "teacher").is_joint(describe_stream(stream))
        tasks = [len(stream.class_names)] if is_joint else stream.classes_per_task
        teacher = PromptViTForImageClassification.from_backbone(
            teacher_backbone,
            query,
            **(of_teacher | ({"classes_per_task": tasks, **_AT_ONCE} if is_joint else {})),
        )
        if is_joint:
            teacher.start_task(stream.class_names)
    if stages != "teacher":
        set_seed(derive_seed(training_args.seed, "student"))
        student = PromptViTForImageClassification.from_backbone(
            student_backbone,
            **prompts,
            kd_branch=method_class.kd_branch,
            **{name: getattr(distillation_args, name) for name in _config_fields(DistillationArguments)},
            teacher_width=_teacher_width(method_class.kd_branch, teacher),
        )
        if is_given:
            objective = TrainingObjective(student, teacher)
        else:
            objective = build_objective(student, teacher, distillation_args)
    else:
        assert teacher is not None
        objective = TrainingObjective(teacher)
    check_heads(objective.model, training_args)
    check_online(stream, objective.model, training_args)
    side = network_of(student_backbone.module).image_size
    data_config = {**student_backbone.pretrained_cfg, "input_size": (3, side, side)}
    if model_args.crop_pct is not None:
        data_config["crop_pct"] = model_args.crop_pct
    if model_args.interpolation is not None:
        data_config["interpolation"] = model_args.interpolation
    processor = image_processor_for(data_config, normalization=model_args.normalization)
    return ModelPair(objective, processor)


def build_objective(
    student: PromptViTForImageClassification,
    teacher: PromptViTForImageClassification | None,
    distillation_args: DistillationArguments,
) -> TrainingObjective:
    """How the student is trained.

    Raises:
        ValueError: The models do not fit each other or the method, or it needs a teacher.
    """
    method_class = METHODS[distillation_args.distillation]
    if distillation_args.distillation == "none" or teacher is None:
        return TrainingObjective(student, teacher)
    options: dict[str, Any] = {}
    if issubclass(method_class, KD):
        options = {"kd_alpha": distillation_args.kd_alpha, "temperature": distillation_args.temperature}
    return method_class(student, teacher, **options)


def _teacher_width(kd_branch: str, teacher: PromptViTForImageClassification | None) -> int | None:
    """What a student's configuration must know of its teacher."""
    if teacher is None or kd_branch not in ("cdl_prompt", "analytic"):
        return None
    network = teacher.network
    return network.embed_dim if kd_branch == "cdl_prompt" else network.width(teacher.readout)


def _config_fields(argument_class: type) -> list[str]:
    """Arguments that a model's configuration has as fields of its own, under the same names."""
    return [f.name for f in fields(argument_class) if f.name in get_annotations(PromptViTConfig)]


def run_name(arguments: Iterable[Any]) -> str:
    """Data set, methods and seed of a run, for the name of its folder."""
    values = to_dict(arguments)
    methods = f"{values['prompt_method']}-{values['distillation']}"
    return f"{Path(values['dataset']).stem}-{methods}-seed{values['seed']}"


def arguments_of(
    stream: TaskStream, objective: TrainingObjective, image_processor: CLIPImageProcessor, args: CDLConfig
) -> ParsedArguments:
    """The arguments that describe the objects of a run made in Python, as the command line would give them."""
    has_student = args.stages != "teacher"
    student = objective.model
    teacher = objective.teacher if has_student else objective.model
    config = student.config
    is_unprompted = teacher is not None and teacher.config.prompt_method == "none" != config.prompt_method
    makes_own_query = config.query_block is None and teacher is not None and teacher.query_backbone is None
    query_source = config.query_backbone_weights.get("source")  # a teacher takes its student's query network
    model_args = ModelArguments(
        teacher=backbone_source(teacher or student),
        student=query_source if not has_student and query_source else backbone_source(student),
        image_size=image_processor.crop_size["height"],
        normalization="backbone" if image_processor.do_normalize else "none",
        classifier=student.config.head,
        query="own" if makes_own_query and not is_unprompted else "student",
        teacher_prompt_method="none" if is_unprompted else None,
        **{name: getattr(config, name) for name in _config_fields(ModelArguments)},
    )
    distillation_args = DistillationArguments(
        distillation=next(
            (name for name, method in METHODS.items() if method is type(objective)), type(objective).__name__
        ),
        **{name: getattr(student.config, name) for name in _config_fields(DistillationArguments)},
    )
    if isinstance(objective, KD):
        distillation_args.kd_alpha, distillation_args.temperature = objective.kd_alpha, objective.temperature
    stages = "student" if has_student and teacher is None else args.stages  # there is only one to train
    instances = (
        StreamArguments(**stream.arguments),
        model_args,
        distillation_args,
        replace(args, stages=stages),
        HubArguments(),
    )
    return ParsedArguments(instances, command_line=sys.argv[1:], config_file=None, config=None)


def check_heads(model: PromptViTForImageClassification, args: CDLConfig) -> None:
    """
    Raises:
        ValueError: The model predicts with heads that some tasks do not train.
    """
    config = model.config
    if config.repeats_classes and args.classifier_alignment:
        raise ValueError(
            "classifier_alignment remembers the features of each class once, and classes come again in this stream: "
            "take classifier=ncm or ranpac, which add to what they have"
        )
    if args.drift_compensation and model.classifier is None and not args.classifier_alignment:
        raise ValueError(
            "drift_compensation is for what is kept of earlier classes, and linear heads keep nothing: take "
            "classifier=ncm, or classifier_alignment"
        )
    _check_carried(model, args)
    if args.drift_compensation and (config.prompt_method == "none" or config.num_trained_tasks == 1):
        raise ValueError(
            "drift_compensation is of no use: after the first task nothing is trained here that changes the features"
        )
    if config.num_trained_tasks < config.num_tasks and model.classifier is None and not args.classifier_alignment:
        raise ValueError(
            f"train_tasks={config.train_tasks} leaves the heads' rows of later classes untrained: take "
            "classifier=ncm or ranpac, which are computed, or classifier_alignment"
        )


def _check_trained(model: PromptViTForImageClassification, args: CDLConfig) -> None:
    """
    Raises:
        ValueError: The model predicts with heads that nothing trains.
    """
    if args.num_train_epochs == 0 and model.classifier is None and not args.classifier_alignment:
        raise ValueError(
            "num_train_epochs=0 trains no head, and classifier=linear predicts with it: take classifier=ncm or "
            "ranpac, which are computed, or classifier_alignment"
        )


def _check_carried(model: PromptViTForImageClassification, args: CDLConfig) -> None:
    """
    Raises:
        ValueError: The model's classifier cannot be carried along as features change.
    """
    if args.drift_compensation and model.config.head == "ranpac":
        raise ValueError(
            "drift_compensation does not help RanPAC, whose random features are too many for a map: take "
            "classifier=ncm, or classifier_alignment with classifier=linear"
        )


def check_fit(
    stream: TaskStream, objective: TrainingObjective, image_processor: CLIPImageProcessor, args: CDLConfig
) -> None:
    """
    Raises:
        ValueError: Stream, models, image processor and configuration do not fit each other.
    """
    teacher = objective.teacher
    if args.stages == "teacher" and teacher is not None:
        raise ValueError("stages='teacher' needs a TrainingObjective of the teacher alone, not one with a teacher")
    if args.teacher_run is not None and args.stages == "student" and teacher is None:
        raise ValueError("teacher_run needs an objective with a teacher to load it into, and this one has none")
    if args.stages == "student" and teacher is not None and args.teacher_run is None:
        raise ValueError(
            "stages='student' trains no teacher, and the objective has one: pass teacher_run, or stages='both'"
        )
    if args.unlabeled_dataset is not None and not isinstance(objective, Analytic):
        raise ValueError(
            "unlabeled_dataset is of use to distillation=analytic alone, and this run has another: leave it out"
        )
    if args.num_train_epochs == 0 and args.student_run is None and _learns_from(teacher, objective):
        raise ValueError(
            f"num_train_epochs=0 trains nothing, so that {type(objective).__name__} cannot distil: take "
            "distillation=none"
        )
    if args.schedule == "same_step" and teacher is None:
        raise ValueError("schedule='same_step' trains teacher and student together, and this objective has no teacher")
    side = image_processor.crop_size["height"]
    models = {"teacher" if args.stages == "teacher" else "student": objective.model}
    if teacher is not None:
        models["teacher"] = teacher
    check_heads(objective.model, args)
    for role, model in models.items():
        if (args.teacher_run if role == "teacher" else args.student_run) is None:
            _check_trained(model, args)
        if role == "student" or args.teacher_run is None:
            check_online(stream, model, args)
            _check_carried(model, args)
        tasks = model.config.classes_per_task
        is_joint = role == "teacher" and args.teacher_run is not None and tasks == [sum(stream.classes_per_task)]
        if model.config.repeats_classes != stream.repeats_classes and not is_joint:
            raise ValueError(
                f"the classes of this stream come {'again' if stream.repeats_classes else 'once'}, and the {role} was "
                f"made for another one: make it with repeats_classes={stream.repeats_classes}"
            )
        if tasks != stream.classes_per_task and not is_joint:
            raise ValueError(
                f"the {role} was made for tasks of {tasks} classes, but the stream has tasks of "
                f"{stream.classes_per_task}: make it with classes_per_task=stream.classes_per_task"
            )
        if model.config.tasks_seen and not is_joint:
            raise ValueError(
                f"the {role} has begun {model.config.tasks_seen} tasks already: a run starts with a new model"
            )
        if model.network.image_size != side:
            raise ValueError(
                f"the image processor makes images of {side} pixels, but the {role} takes {model.network.image_size}"
            )


def _learns_from(teacher: PromptViTForImageClassification | None, objective: TrainingObjective) -> bool:
    """Whether an objective trains its model by its teacher."""
    return teacher is not None and type(objective) is not TrainingObjective and objective.trains


def backbone_source(model: PromptViTForImageClassification) -> str:
    """The name under which a model's backbone was loaded; its architecture where that is not known."""
    return model.config.backbone_weights.get("source", model.config.backbone)
