"""Model card of a pre-trained backbone, to which probes add their figures."""

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
import torchvision

from ..invocation import how_it_started
from ..utils import num_cores

_TABLE = "| measured | |\n|---|---|\n"
# Key of a probe's figure -> its name in the card
PROBES = {"linear_probe": "linear probe", "nearest_class_mean": "nearest class mean", "ranpac": "RanPAC"}


def describe(device: torch.device) -> str:
    """The machine and the versions of what trains on it, in a line."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{num_cores()} CPU cores"
    versions = ", ".join(
        f"{module.__name__} {module.__version__}" for module in (torch, torchvision, timm, accelerate)
    )
    return f"{machine}; Python {platform.python_version()}, {versions}"


def backbone_card(name: str, result: Mapping[str, Any], command: Sequence[str], images: str, held_out: int) -> str:
    """The card, in Markdown, of a backbone that `cdl-hf pretrain` has trained.

    Args:
        result: As in results.json: `arguments`, `seconds`, `epochs`, `test_accuracy`, `precision`, `machine`, and the
            figures of a probe if there was one.
        command: Arguments of the call; of paths only the last part is shown.
        images: The training images, in words.
        held_out: Number of test images.
    """
    given = result["arguments"]
    call = shlex.join(Path(part).name if os.path.exists(part) else part for part in command)
    # broken in front of options, as one would write it
    call = call.replace(" --", " \\\n    --")
    card = f"""---
library_name: timm
tags: [image-feature-extraction]
---

# {name}

`{given["model"]}` of timm with the `model_args` of config.json, without classifier, in half precision.
`cdl_hf.load_backbone` and `timm.create_model("local-dir:<this folder>", pretrained=True)` load it.

**Data**: {images}. The terms of the data apply to the weights.

{_TABLE}| held-out images of the same classes ({held_out:,}) | {result["test_accuracy"]:.1f} % |

**Training**: seed {given["seed"]}, {result["epochs"]} epochs in {result["seconds"]:,} s, mixed precision \
{result["precision"]}, on {result["machine"]}. The weights are averages over the last steps; no epoch was picked.

```
{shlex.join(how_it_started([]))} {call}
```
"""
    return add_probe(card, given["probe"], result) if given.get("probe") else card


def add_probe(card: str, dataset: str, figures: Mapping[str, Any]) -> str:
    """The card with the accuracies (%) of a probe on a data set in its table, in place of earlier ones.

    Raises:
        ValueError: The card has no table.
    """
    if _TABLE not in card:
        raise ValueError("the card has no table 'measured': only the cards of cdl-hf pretrain have one")
    rows = {
        f"| {label} on {Path(dataset).name} | ": f"{figures[key]:.1f} % |\n"
        for key, label in PROBES.items()
        if key in figures
    }
    lines = [line for line in card.splitlines(keepends=True) if not line.startswith(tuple(rows))]
    end = max(i for i, line in enumerate(lines) if line.startswith("| ")) + 1
    return "".join([*lines[:end], *(start + value for start, value in rows.items()), *lines[end:]])
