"""Probes of a frozen backbone's features on a data set, without prompts: a linear classifier and class means.

    python recipes/probe.py --backbone vit_micro_quickdraw --dataset quickdraw100

Fits a linear classifier, the nearest class mean and RanPAC on the features of the training images, on all classes at
once, and prints their accuracy on the test images: what a continual learner on this backbone can hope for.
"""

from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from cdl_hf.arguments.stream import DatasetArguments
from cdl_hf.cli import argument, cli_error, parse
from cdl_hf.data import load_image_dataset
from cdl_hf.models.backbones import load_backbone
from cdl_hf.pretraining.card import PROBES, add_probe
from cdl_hf.pretraining.probe import probe
from cdl_hf.training.build import source_options
from cdl_hf.utils import write_text


@dataclass
class ProbeArguments:
    """The backbone."""

    backbone: str = argument("Backbone: a bundled one, a timm name with its tag, a folder, or hf_hub:name")
    batch_size: int = argument("Images per forward pass", 256, min=1)
    card: bool = argument("Add the figures to the card in the backbone's folder", False)


def main():
    args, data = parse((ProbeArguments, DatasetArguments), description=__doc__)
    card = Path(args.backbone) / "README.md"
    if args.card and not card.is_file():
        cli_error(f"card: {args.backbone} is not a folder with a card (README.md), such as cdl-hf pretrain writes")
    try:
        backbone = load_backbone(args.backbone).module
        if args.card:
            add_probe(card.read_text(encoding="utf-8"), data.dataset, {})  # refused before the work
        accuracy = probe(backbone, load_image_dataset(data.dataset, **source_options(data)), args.batch_size)
    except ValueError as error:
        cli_error(str(error))
    print(f"{args.backbone} on {data.dataset} ({timm.__name__} {timm.__version__}, torch {torch.__version__})")
    print(", ".join(f"{PROBES[name]} {value:.1f}%" for name, value in accuracy.items()))
    if args.card:
        text = add_probe(card.read_text(encoding="utf-8"), data.dataset, accuracy)
        write_text(card, text)


if __name__ == "__main__":
    main()
