"""Both models on the test images of all tasks seen, in one pass over the images."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import Batches, TaskImages

MEMORY_LIMIT = 2**30  # bytes of queries kept; the rest is computed again


class Evaluator:
    """Counts right answers by task.

    The queries of the test images, which no training changes, are kept from one call to the next.

    Args:
        accelerator: With `split_batches`, so that `batch_size` counts all processes.
        batch_size: Images of one step.
        num_workers: Loader processes.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int, num_workers: int = 0):
        self.accelerator, self.num_workers = accelerator, num_workers
        self.batch_size = max(batch_size // accelerator.num_processes, 1) * accelerator.num_processes
        self._queries: dict[tuple[int, int], Tensor | None] = {}  # by task and batch of this process
        self._kept = 0  # bytes

    def __call__(
        self, models: dict[str, torch.nn.Module], tasks: Iterable[TaskImages]
    ) -> dict[str, list[tuple[int, int]]]:
        """For each model and task the number of right answers and of images.

        Args:
            models: Name -> model; the query of the first serves the others that share its query network. The query
                networks are the same in every call.
            tasks: Test images of the tasks seen; the first are those of the call before.
        """
        names = list(models)
        first = models[names[0]]
        for model in models.values():
            model.eval()
        shares = {name: first.shares_query_with(model) for name, model in models.items()}
        with torch.inference_mode():
            return self._count(models, shares, tasks)

    def _count(
        self, models: dict[str, torch.nn.Module], shares: dict[str, bool], tasks: Iterable[TaskImages]
    ) -> dict[str, list[tuple[int, int]]]:
        names, first = list(models), next(iter(models.values()))
        counts: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        for task, images in enumerate(tasks):
            loader = DataLoader(images, batch_size=self.batch_size, num_workers=self.num_workers)
            loader = self.accelerator.prepare_data_loader(loader)
            right, total = torch.zeros(len(names), dtype=torch.long), 0
            for i, batch in enumerate(Batches(loader, images)):
                with self.accelerator.autocast():
                    query = self._query(first, batch["pixel_values"], (task, i))
                    predictions = self._predict(models, shares, batch["pixel_values"], query)
                correct = self.accelerator.gather_for_metrics((predictions == batch["labels"][:, None]).long())
                right += correct.sum(0).cpu()
                total += len(correct)
            for name, count in zip(names, right.tolist(), strict=True):
                counts[name].append((count, total))
        return counts

    def _query(self, model: torch.nn.Module, pixel_values: Tensor, place: tuple[int, int]) -> Tensor | None:
        if place in self._queries:
            return self._queries[place]
        query = model.query(pixel_values)
        if query is not None and self._kept + query.nbytes <= MEMORY_LIMIT:
            self._queries[place] = query
            self._kept += query.nbytes
        return query

    @staticmethod
    def _predict(
        models: dict[str, torch.nn.Module], shares: dict[str, bool], pixel_values: Tensor, query: Tensor | None
    ) -> Tensor:
        """Predicted columns (B, number of models)."""
        predictions = [model(pixel_values, query=query if shares[name] else None) for name, model in models.items()]
        return torch.stack([prediction.logits.argmax(1) for prediction in predictions], dim=1)
