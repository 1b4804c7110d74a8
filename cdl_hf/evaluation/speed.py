"""Latency of a model."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


@torch.inference_mode()
def latency(model: Callable[[Tensor], object], pixel_values: Tensor, repeats: int = 20) -> float:
    """Median time in milliseconds from a batch to its logits, including the query pass, after three warm-up calls.

    Args:
        model: Function of `pixel_values`.
        pixel_values: (B, 3, H, W), on the device of the model.
        repeats: Number of timed calls.
    """
    times = []
    for call in range(3 + repeats):
        _wait_for(pixel_values.device)
        began = time.perf_counter()
        model(pixel_values)
        _wait_for(pixel_values.device)
        if call >= 3:
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
