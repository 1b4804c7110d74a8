"""Both models on the test images of all tasks seen, in one pass over the images."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Evaluator:
    """Counts right answers by task.

    Args:
        accelerator: With `split_batches`, so that `batch_size` counts all processes.
        batch_size: Images of one step.
        num_workers: Loader processes.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int, num_workers: int = 0):
        self.accelerator, self.num_workers = accelerator, num_workers
        self.batch_size = max(batch_size // accelerator.num_processes, 1) * accelerator.num_processes

    @torch.inference_mode()
    def __call__(
        self, models: dict[str, torch.nn.Module], tasks: Iterable[Dataset]
    ) -> dict[str, list[tuple[int, int]]]:
        """For each model and task the number of right answers and of images.

        Args:
            models: Name -> model; the query of the first serves the others that share its query network.
            tasks: Test images of the tasks seen, each sample with `pixel_values` and `labels`.
        """
        names = list(models)
        first = models[names[0]]
        for model in models.values():
            model.eval()
        shares = {name: first.shares_query_with(model) for name, model in models.items()}
        counts: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        for images in tasks:
            loader = DataLoader(images, batch_size=self.batch_size, num_workers=self.num_workers)
            loader = self.accelerator.prepare_data_loader(loader)
            right, total = torch.zeros(len(names), dtype=torch.long), 0
            for batch in loader:
                predictions = self._predict(models, shares, batch["pixel_values"])
                correct = self.accelerator.gather_for_metrics((predictions == batch["labels"][:, None]).long())
                right += correct.sum(0).cpu()
                total += len(correct)
            for name, count in zip(names, right.tolist(), strict=True):
                counts[name].append((count, total))
        return counts

    def _predict(self, models: dict[str, torch.nn.Module], shares: dict[str, bool], pixel_values: Tensor) -> Tensor:
        """Predicted columns (B, number of models)."""
        with self.accelerator.autocast():
            query = next(iter(models.values())).query(pixel_values)
            return torch.stack(
                [
                    model(pixel_values, query=query if shares[name] else None).logits.argmax(1)
                    for name, model in models.items()
                ],
                dim=1,
            )
