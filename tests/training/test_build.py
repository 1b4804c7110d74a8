"""From arguments to objects and back, and what does not fit."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.models import save_for_hf
from tiny_models import tiny_backbone, tiny_model

from cdl_hf import TaskStream, load_image_dataset
from cdl_hf.arguments.config import DistillationArguments, HubArguments, ModelArguments
from cdl_hf.arguments.stream import StreamArguments
from cdl_hf.cli import to_dict
from cdl_hf.data import image_processor_for
from cdl_hf.distillation import METHODS, TrainingObjective
from cdl_hf.training import CDLConfig
from cdl_hf.training.build import arguments_of, build_models, build_stream, check_fit, run_name


@pytest.mark.parametrize("method", ["none", "kd", "kdp", "cdl_prompt"])
def test_arguments_are_read_off_the_objects_that_they_make(method, pair, drawings):
    stream_args = StreamArguments(
        dataset=str(drawings), num_tasks=3, stream_seed=4, class_order="seeded", max_samples_per_class=5
    )
    model_args = ModelArguments(
        teacher=str(pair[0]),
        student=str(pair[1]),
        image_size=16,
        normalization="none",
        prompt_method="dualprompt",
        classifier="ranpac",
        ranpac_width=24,
        pool_size=3,
        prompt_length=4,
        prompt_blocks=[2, 3],
        g_prompt_length=4,
        g_prompt_blocks=[1],
        query="own" if method == "none" else "student",
        query_block=0 if method == "kd" else None,
    )
    distillation_args = DistillationArguments(distillation=method, kd_prompt_length=4, kd_prompt_blocks=2)
    if method != "none":
        distillation_args = replace(distillation_args, kd_alpha=0.7, temperature=3.0)
    args = CDLConfig(num_train_epochs=1, seed=3)
    stream = build_stream(stream_args)
    made = build_models(stream, model_args, distillation_args, args)
    found = arguments_of(stream, made.objective, made.image_processor, args)
    given = to_dict((stream_args, model_args, distillation_args, args, HubArguments()))
    for role, folder in zip(("teacher", "student"), pair, strict=True):
        given[role] = folder.name  # where it lies is not the model's to know
    assert to_dict(found) == given
    assert run_name(found) == f"{drawings.name}-dualprompt-{method}-seed3"
    if method != "none":
        assert (made.objective.teacher.query_backbone is None) == (method == "kd")
        assert made.objective.kd_alpha == made.objective.model.config.kd_alpha == 0.7


@pytest.fixture
def cnn(tmp_path):
    folder = tmp_path / "cnn"
    args = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}
    model = timm.create_model("resnet50", num_classes=0, **args)
    config = {"architecture": "resnet50", "num_features": model.num_features}
    save_for_hf(model, folder, model_config=config, model_args=args, safe_serialization=True)
    return folder


def test_a_cnn_teaches_a_prompted_student(cnn, pair, drawings):
    stream = build_stream(StreamArguments(dataset=str(drawings), num_tasks=3))
    model_args = ModelArguments(
        teacher=str(cnn), student=str(pair[1]), image_size=16, pool_size=6, teacher_prompt_method="none"
    )
    made = build_models(stream, model_args, DistillationArguments(), CDLConfig())
    student, teacher = made.objective.model, made.objective.teacher
    assert (teacher.config.prompt_method, student.config.prompt_method) == ("none", "coda_prompt")
    for model in (student, teacher):
        model.start_task(["a", "b"])
    losses = made.objective.train()(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    losses["loss"].backward()
    assert student.prompt_pool.prompts.grad.any()
    found = to_dict(arguments_of(stream, made.objective, made.image_processor, CDLConfig()))
    assert [found[name] for name in ("prompt_method", "teacher_prompt_method", "query")] == [
        *("coda_prompt", "none", "student")
    ]
    with pytest.raises(ValueError, match="resnet50 is a ResNet, .* for a teacher teacher_prompt_method none"):
        build_models(stream, replace(model_args, teacher_prompt_method=None), DistillationArguments(), CDLConfig())
    with pytest.raises(ValueError, match="whose prompts take the query of its student"):
        build_models(stream, model_args, DistillationArguments(distillation="cdl_prompt"), CDLConfig())


@pytest.fixture
def make_objective():
    def make(name="kd", **config):
        return METHODS[name](*(tiny_model("l2p", tasks=0, classes_per_task=[2, 2, 2], **config) for _ in range(2)))

    return make


def test_what_does_not_fit_is_refused(make_objective, drawings):
    stream = TaskStream(load_image_dataset(str(drawings)), num_tasks=3)
    images = image_processor_for({"input_size": (3, 32, 32)})
    alone = TrainingObjective(make_objective().model)
    check_fit(stream, make_objective(), images, CDLConfig())
    check_fit(stream, alone, images, CDLConfig())  # a student alone
    check_fit(stream, alone, images, CDLConfig(stages="teacher"))
    begun = make_objective()
    begun.teacher.start_task(["a", "b"])
    two_tasks = TaskStream(load_image_dataset(str(drawings)), num_tasks=2)
    large = image_processor_for({"input_size": (3, 64, 64)})
    student = CDLConfig(stages="student")
    for objective, where, processor, args, reason in (
        (make_objective(), stream, images, CDLConfig(stages="teacher"), "a TrainingObjective of the teacher alone"),
        (alone, stream, images, replace(student, teacher_run="run"), "needs an objective with a teacher"),
        (make_objective(), stream, images, student, "pass teacher_run, or stages='both'"),
        (alone, stream, images, CDLConfig(schedule="same_step"), "this objective has no teacher"),
        (make_objective(), two_tasks, images, CDLConfig(), r"made for tasks of \[2, 2, 2\] classes"),
        (make_objective(), stream, large, CDLConfig(), "makes images of 64 pixels, but the student takes 32"),
        (begun, stream, images, CDLConfig(), "the teacher has begun 1 tasks already"),
    ):
        with pytest.raises(ValueError, match=reason):
            check_fit(where, objective, processor, args)


def test_a_field_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="PromptViTConfig has no field 'prompt_metod'"):
        tiny_model("l2p", backbone=tiny_backbone(), prompt_metod="apt")
