"""Evaluation of several models on the test images of all tasks seen, in one pass over the images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from ..data import TaskImages
from ..data.loaders import TaskLoader
from .accuracy_matrix import TaskCounts

MEMORY_LIMIT = 2**30  # bytes of cached queries; the others are computed in every evaluation


class Predictor(Protocol):
    """What can be evaluated: a [`PromptViTForImageClassification`], or what is called as it is."""

    def eval(self) -> Any: ...

    def query(self, pixel_values: Tensor) -> Tensor | None: ...

    def shares_query_with(self, other: Any) -> bool: ...

    def __call__(self, pixel_values: Tensor, query: Tensor | None = None) -> Any: ...


class Evaluator:
    """Counts correct predictions by task.

    Queries of the test images do not change during training and are cached between calls. The loader and its processes
    are kept between calls as long as tasks are left that have not been tested.

    Args:
        accelerator: With `split_batches`, so that `batch_size` counts all processes.
        batch_size: Number of images per step; rounded by [`divided_batch_size`].
        num_workers: Number of loader processes.
        after_batch: Called on every process after each step; an exception ends the evaluation.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        batch_size: int,
        num_workers: int = 0,
        after_batch: Callable[[], None] = lambda: None,
    ):
        self.accelerator, self.num_workers, self.after_batch = accelerator, num_workers, after_batch
        self.batch_size = divided_batch_size(batch_size, accelerator)
        self._queries: dict[tuple[int, int], Tensor | None] = {}  # by task and batch of this process
        self._kept = 0  # bytes
        self._loader: TaskLoader | None = None

    def __call__(
        self,
        models: Mapping[str, Predictor],
        tasks: Sequence[TaskImages],
        described: str | None = None,
        task_of_class: Sequence[int] | None = None,
        num_tasks: int | None = None,
    ) -> dict[str, list[TaskCounts]]:
        """Number of correct predictions and of images for each model and task.

        Args:
            models: Name -> model; models that share the query network of the first use its queries. The query networks
                are the same in every call.
            tasks: Test images of the tasks, starting with those of the previous call; all under one transform.
            described: What the images are in an error. Default: "test images of task N".
            task_of_class: Task of each class, (C,), at least of those in the logits: predictions within the image's
                own task and right tasks are counted as well, from the same logits.
            num_tasks: Number of first tasks that are tested, those seen; all if `None`.

        Raises:
            FloatingPointError: A model's logits are not numbers.
        """
        names = list(models)
        first = models[names[0]]
        for model in models.values():
            model.eval()
        shares = {name: first.shares_query_with(model) for name, model in models.items()}
        num_tasks = len(tasks) if num_tasks is None else num_tasks
        if self._loader is None or self._loader.tasks != list(tasks):
            self._loader = TaskLoader(self.accelerator, tasks, self.batch_size, self.num_workers)
        loader = self._loader
        if num_tasks == len(tasks):
            self._loader = None  # its processes end with this call
        with torch.inference_mode():
            found = self._find(models, shares, loader, num_tasks, task_of_class)
        counts: dict[str, list[TaskCounts]] = {name: [] for name in names}
        for task, of_task in enumerate(found):
            for name, correct in zip(names, of_task.unbind(1), strict=True):
                if (correct < 0).any():
                    where = described or f"test images of task {task + 1}"
                    raise FloatingPointError(f"the {name}'s logits of {where} are not numbers")
                count, *by_task = correct.sum(0).tolist()
                counts[name].append(TaskCounts(count, len(correct), *by_task))
        return counts

    def _find(
        self,
        models: Mapping[str, Predictor],
        shares: dict[str, bool],
        loader: TaskLoader,
        num_tasks: int,
        task_of_class: Sequence[int] | None,
    ) -> list[Tensor]:
        """What is correct of each task: (n, number of models, 1), or with `task_of_class` (n, number of models, 3).

        It is 1 where the prediction, the one within the task, or the predicted task is right; -1 for logits that are
        not numbers.
        """
        device, first = self.accelerator.device, next(iter(models.values()))
        tasks_of_classes = None if task_of_class is None else torch.tensor(task_of_class, device=device)
        # on the device, so that no step waits for its predictions; a task may have no images
        kinds = 1 if tasks_of_classes is None else 3
        none = torch.zeros(0, len(models), kinds, dtype=torch.long, device=device)
        found: list[list[Tensor]] = [[none] for _ in range(num_tasks)]
        for task, number, num_images, batch in loader.of_first(num_tasks):
            in_task = None if tasks_of_classes is None else tasks_of_classes == task  # (C,)
            with self.accelerator.autocast():
                query = self._query(first, batch["pixel_values"], (task, number))
                predictions = self._predict(models, shares, batch["pixel_values"], query, in_task)
            correct = predictions == batch["labels"][:, None, None]
            if in_task is not None:
                correct = torch.cat([correct, in_task[predictions[..., :1]]], dim=2)
            correct = correct.long().where(predictions[..., :1] >= 0, -1)
            found[task].append(self.accelerator.gather(correct)[:num_images])
            self.after_batch()
        return [torch.cat(of_task).cpu() for of_task in found]

    def _query(self, model: Predictor, pixel_values: Tensor, place: tuple[int, int]) -> Tensor | None:
        if place in self._queries:
            return self._queries[place]
        query = model.query(pixel_values)
        if query is not None and self._kept + query.nbytes <= MEMORY_LIMIT:
            self._queries[place] = query
            self._kept += query.nbytes
        return query

    @staticmethod
    def _predict(
        models: Mapping[str, Predictor],
        shares: dict[str, bool],
        pixel_values: Tensor,
        query: Tensor | None,
        in_task: Tensor | None,
    ) -> Tensor:
        """Predicted class ids, -1 where the logits are not numbers.

        Returns:
            (B, number of models, 1), or with `in_task` (B, number of models, 2): the second among its classes alone.
        """
        predictions = []
        for name, model in models.items():
            logits = model(pixel_values, query=query if shares[name] else None).logits
            class_ids = [logits.argmax(1)]
            if in_task is not None:
                class_ids.append(logits.masked_fill(~in_task[: logits.shape[1]], -torch.inf).argmax(1))
            predictions.append(torch.stack(class_ids, 1).where(~logits.isnan().any(1, keepdim=True), -1))
        return torch.stack(predictions, dim=1)


def divided_batch_size(batch_size: int, accelerator: Accelerator) -> int:
    """The largest multiple of the number of processes up to `batch_size`; at least one image per process."""
    return max(batch_size // accelerator.num_processes, 1) * accelerator.num_processes
