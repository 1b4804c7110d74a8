"""Tiny random models, made offline in milliseconds: a student and a teacher that differs from it in every size."""

from typing import Any

import torch
from torch import Tensor, nn

from cdl_hf.distillation import METHODS, TrainingObjective
from cdl_hf.models import PretrainedBackbone, PromptViTForImageClassification, load_backbone

CLASSES_PER_TASK = [3, 2, 4]
STUDENT = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
TEACHER = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
# Each fits two blocks; CODA-Prompt's pool is a multiple of the number of tasks.
PROMPTS: dict[str, dict[str, Any]] = {
    "l2p": {"pool_size": 7, "prompt_length": 4, "prompt_blocks": [0], "top_k": 2},
    "dualprompt": {"prompt_length": 4, "prompt_blocks": [1], "g_prompt_length": 2, "g_prompt_blocks": [0]},
    "coda_prompt": {"pool_size": 6, "prompt_length": 4, "prompt_blocks": [0, 1], "ortho_weight": 0.1},
    "apt": {},
    "lora": {"lora_rank": 2, "lora_alpha": 2},
}
WITHOUT_QUERY = ("apt", "lora")  # CDL-Prompt maps prompts that are selected by the query
# Analytic distillation has tests of its own: it distils without training, and no prompts may be trained.
PAIRS = [(p, m) for p in PROMPTS for m in METHODS if m != "analytic" and (m != "cdl_prompt" or p not in WITHOUT_QUERY)]


def tiny_backbone(**args) -> PretrainedBackbone:
    return load_backbone("vit_tiny_patch16_224", pretrained=False, **{**STUDENT, **args})


def tiny_model(
    prompt_method: str, kd_branch: str = "none", tasks: int = 1, backbone: PretrainedBackbone | None = None, **config
) -> PromptViTForImageClassification:
    """A model of STUDENT's size with `tasks` tasks begun."""
    if kd_branch == "cdl_prompt":
        config["teacher_width"] = TEACHER["embed_dim"]
    model = PromptViTForImageClassification.from_backbone(
        backbone or tiny_backbone(),
        **{
            "classes_per_task": CLASSES_PER_TASK,
            "prompt_method": prompt_method,
            "kd_branch": kd_branch,
            **PROMPTS.get(prompt_method, {}),
            **config,
        },
    )
    for _ in range(tasks):
        start_task(model)
    return model


def tiny_pair(
    prompt_method: str, method: str, tasks: int = 1, **config
) -> tuple[PromptViTForImageClassification, TrainingObjective]:
    """Teacher and method; the teacher takes the student's query."""
    student_backbone = tiny_backbone()
    teacher = PromptViTForImageClassification.from_backbone(
        tiny_backbone(**TEACHER),
        student_backbone,
        classes_per_task=CLASSES_PER_TASK,
        prompt_method=prompt_method,
        **PROMPTS[prompt_method],
    )
    for _ in range(tasks):
        start_task(teacher)
    method_class = METHODS[method]
    student = tiny_model(prompt_method, method_class.kd_branch, tasks, student_backbone, **config)
    return teacher, method_class(student) if method == "none" else method_class(student, teacher)


def start_task(model: PromptViTForImageClassification) -> None:
    task = model.config.tasks_seen
    model.start_task([f"class {task}.{i}" for i in range(CLASSES_PER_TASK[task])])


def images(count: int = 4, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size)


def labels_for(model: PromptViTForImageClassification, count: int = 4) -> Tensor:
    """Labels of the current task, each class in turn."""
    current = model.config.current_classes
    return torch.arange(count) % (current.stop - current.start) + current.start


def train(method: TrainingObjective, pixel_values: Tensor, steps: int = 8, lr: float = 3e-3) -> list[float]:
    """Trains on one batch; the loss before each step."""
    method.train()
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=lr)
    labels, losses = labels_for(method.model, len(pixel_values)), []
    for _ in range(steps):
        output = method(pixel_values, labels)
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        losses.append(output["loss"].item())
    method.eval()
    return losses


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def lora_after_two_tasks():
    """LoRA on two linear layers of the last block, with merged updates of two of three tasks."""
    model = tiny_model("lora", tasks=0, lora_targets=["qkv", "fc2"], prompt_blocks=[1], lora_alpha=3)
    for _ in range(2):
        start_task(model)
        for update in model.prompt_pool.updates_of(1).values():
            nn.init.normal_(update.up, std=0.3)
        model.end_task()
    return model.eval()
