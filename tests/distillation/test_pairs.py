"""What every prompt method must do with every distillation method."""

import pytest
import torch
from tiny_models import CLASSES_PER_TASK, PAIRS, images, labels_for, snapshot, start_task, tiny_model, tiny_pair, train

from cdl_hf.distillation import METHODS, TrainingObjective
from cdl_hf.models import PromptViTForImageClassification

every_pair = pytest.mark.parametrize(("prompt_method", "method_name"), PAIRS)


@every_pair
def test_two_tasks_of_training(prompt_method, method_name, tmp_path):
    teacher, method = tiny_pair(prompt_method, method_name, tasks=0)
    student, pixel_values = method.model, images(6)
    for task in range(2):
        for model, stage in ((teacher, TrainingObjective(teacher)), (student, method)):
            start_task(model)
            before, other = snapshot(model), snapshot(teacher if stage is method else student)
            losses = train(stage, pixel_values)
            # of two classes, standardised logits and correlations are a sign, and their loss a step
            if not (stage is method and method_name in ("lskd", "dist") and CLASSES_PER_TASK[task] == 2):
                assert losses[-1] < losses[0], "loss does not fall"
            check_changes(model, before, task)
            model.end_task()
            assert_equal_states(teacher if stage is method else student, other)
        check_saved(student, pixel_values, tmp_path / str(task))


def check_changes(model: PromptViTForImageClassification, before: dict, task: int) -> None:
    """Trained are the task's prompts, its rows of the heads, the KD branch; nothing else."""
    after, config = model.state_dict(), model.config
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    copied = {name for name in after if ".teacher_pool." in name}
    assert changed - copied <= free
    gates = {"token", "prompts", "values", "weight", "bias"}  # what must have moved; keys move where they are used
    assert {name for name in free if name.rsplit(".", 1)[1] in gates} <= changed

    columns = config.current_classes
    for name in changed:
        difference = (after[name] - before[name]).abs()
        if name.startswith(("head.", "kd_head.")):
            difference[columns] = 0
            assert not difference.any(), f"{name}: rows of other tasks changed"
        elif name.startswith("prompt_pool.") and config.prompt_method == "coda_prompt":
            share = config.pool_size // config.num_tasks
            difference[:, task * share : (task + 1) * share] = 0
            assert not difference.any(), f"{name}: components of other tasks changed"
        elif name in ("prompt_pool.prompts", "prompt_pool.keys") and config.prompt_method == "dualprompt":
            difference[:, task] = 0
            assert not difference.any(), f"{name}: E-prompts of other tasks changed"


def check_saved(model: PromptViTForImageClassification, pixel_values: torch.Tensor, folder) -> None:
    model.save_pretrained(folder)
    loaded, info = PromptViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model.eval()(pixel_values).logits
        assert logits.shape == (len(pixel_values), model.config.seen_classes)
        assert torch.equal(loaded(pixel_values).logits, logits)
    assert_equal_states(loaded, model.state_dict())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trained


def assert_equal_states(module: torch.nn.Module, state: dict) -> None:
    current = module.state_dict()
    assert current.keys() == state.keys()
    assert all(torch.equal(current[name], state[name]) for name in state)


@every_pair
def test_gradients_reach_what_is_trained_and_nothing_else(prompt_method, method_name):
    teacher, method = tiny_pair(prompt_method, method_name)
    pixel_values = images()
    output = method.train()(pixel_values, labels_for(method.model))
    output["loss"].backward()
    parts = {name: value for name, value in output.items() if name not in ("loss", "logits", "query")}
    assert torch.allclose(sum(parts.values()), output["loss"])
    assert output["logits"].shape == (4, 3)
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in method.named_parameters() if p.requires_grad}  # as DDP needs
    frozen = ("student.backbone.", "student.query_backbone.", "student.head.norm.", "student.kd_branch.teacher_pool.")
    assert not any(name.startswith(frozen) for name in with_gradient)
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(child is teacher for child in method.modules())
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@every_pair
def test_a_prediction_depends_on_its_image_alone(prompt_method, method_name):
    _, method = tiny_pair(prompt_method, method_name, tasks=2)
    student, pixel_values = method.model.eval(), images(64)
    randomize(student)
    order = torch.randperm(64)
    with torch.no_grad():
        whole = student(pixel_values).logits
        assert torch.allclose(student(pixel_values[order]).logits, whole[order], atol=1e-5)
        for size in (1, 7):
            parts = torch.cat([student(part).logits for part in pixel_values.split(size)])
            assert torch.allclose(parts, whole, atol=1e-5)
    assert whole.std(0).min() > 1e-4, "the images make no difference"


def randomize(model: PromptViTForImageClassification) -> None:
    """Prompts far from their first values, so that those chosen differ between the images."""
    with torch.no_grad():
        for module in (model.prompt_pool, model.kd_branch):
            if module is not None:
                for name, tensor in module.state_dict().items():
                    tensor.normal_(std=0.1 if name.startswith("updates.") else 1)  # of weights, not prompts


@every_pair
def test_mixed_precision_is_finite(prompt_method, method_name):
    teacher, method = tiny_pair(prompt_method, method_name)
    pixel_values, labels = images(), labels_for(method.model)
    with torch.autocast("cpu", torch.bfloat16):
        TrainingObjective(teacher).train()(pixel_values, labels)["loss"].backward()
        output = method.train()(pixel_values, labels)
    output["loss"].backward()
    assert torch.isfinite(output["loss"])
    assert output["loss"].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    with torch.no_grad():
        exact = method(pixel_values, labels)["loss"]
    assert torch.allclose(output["loss"], exact, rtol=0.05)


def test_the_pair_without_meaning_is_refused():
    with pytest.raises(ValueError, match="APT has neither"):
        tiny_model("apt", "cdl_prompt")


@pytest.mark.parametrize("method_name", [name for name, method in METHODS.items() if name != "none" and method.trains])
def test_teacher_trained_in_the_same_step(method_name):
    """Teacher step, then student step: the student sees the teacher as it predicts, and leaves it training."""
    teacher, method = tiny_pair("coda_prompt", method_name)
    pixel_values, labels = images(), labels_for(teacher)
    method.train()
    teacher.train()
    in_the_same_step = method(pixel_values, labels)["loss"]
    assert teacher.training
    teacher.eval()
    assert torch.equal(method(pixel_values, labels)["loss"], in_the_same_step)


@pytest.mark.parametrize(
    ("theirs", "fits"), [([2, 2, 2], True), ([6], True), ([4, 2], True), ([3, 3], False), ([4, 3], False)]
)
def test_a_joint_teacher_that_learned_further_classes_fits(theirs, fits):
    """Each of its tasks is one or several of the student's."""
    student = tiny_model("none", tasks=0, classes_per_task=[2, 2, 2])
    teacher = tiny_model("none", tasks=0, classes_per_task=theirs)
    if fits:
        METHODS["kd"](student, teacher)
    else:
        with pytest.raises(ValueError, match="must learn the same tasks"):
            METHODS["kd"](student, teacher)
