"""Fisher information of weight updates, measured on a task's images once it is trained."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ..data import Batches, TaskImages
from ..data.loaders import image_loader
from ..evaluation.evaluator import divided_batch_size
from ..models import PromptViTForImageClassification
from ..models.prompt_pools import LoRA


def measure_fisher(
    accelerator: Accelerator,
    model: PromptViTForImageClassification,
    images: TaskImages,
    batch_size: int,
    workers: int,
    after_batch: Callable[[], None] = lambda: None,
) -> None:
    """Sets the `fisher` of each update of a model's LoRA: the mean over the images of the squared gradient of each
    one's cross-entropy over the task's classes, for every weight. Call it before `end_task`; other models stay as
    they are.

    Args:
        batch_size: Images of one step over all processes; rounded as the evaluator does.
        after_batch: Called on every process after each step; what it raises ends the work.
    """
    if not isinstance(model.prompt_pool, LoRA) or not model.prompt_pool.needs_fisher:
        return
    updates = list(model.prompt_pool.each_update())
    loader = image_loader(accelerator, images, divided_batch_size(batch_size, accelerator), workers)
    model.train()
    current = model.config.current_classes
    for update in updates:
        update.is_measuring, update.fisher = (
            True,
            torch.zeros(len(update.up), update.down.shape[1]).to(update.up.device),
        )
    for batch in Batches(loader, images):
        labels = batch["labels"]
        count = len(labels)
        if (
            loader.end_of_dataloader and loader.remainder > 0
        ):  # the rest repeats images, so that processes have as many
            count = min(max(loader.remainder - accelerator.process_index * count, 0), count)
        if count:
            with accelerator.autocast():
                logits = model(batch["pixel_values"][:count]).logits[:, current]
            loss = F.cross_entropy(logits.float(), labels[:count] - current.start)
            (loss * count).backward()  # the gradient of each image's own loss
            model.zero_grad(set_to_none=True)
        after_batch()
    for update in updates:
        update.is_measuring = False
        assert update.fisher is not None
        update.fisher = accelerator.reduce(update.fisher) / len(images)
    model.eval()
