"""The arguments of a pre-training, which `cdl-hf pretrain` takes."""

from dataclasses import dataclass
from typing import Literal

from ..arguments.stream import DatasetArguments
from ..cli import argument


@dataclass
class DataArguments(DatasetArguments):
    """The data set."""

    dataset: str = argument("Name of a known data set, a folder of images, a table, a saved data set, or a Hub name")
    test_fraction: float = argument(
        "Share of each class that is held out when there is no test split", 0.1, min=0, max=1
    )
    images: Literal["drawings", "photographs"] = argument("What they show, which decides the augmentation", "drawings")
    stored_size: int | None = argument(
        "Side of the images in memory, in pixels", None, unset="half more than image_size for photographs", min=8
    )
    probe: str | None = argument("Data set on which to probe the finished backbone's features", None)


@dataclass
class ModelArguments:
    """The network."""

    model: str = argument("Architecture by its timm name, such as vit_tiny_patch16_224")
    model_args: str = argument("JSON object of arguments for timm.create_model", "{}")
    image_size: int | None = argument("Side of the square images in pixels", None, unset="the network's", min=8)
    mean: float | None = argument("Mean that is subtracted from pixels in [0, 1]", None, unset="the network's")
    std: float | None = argument("Standard deviation that divides the pixels", None, unset="the network's", min=0.001)
    distill_from: str | None = argument("Network folder of an earlier run, whose soft labels replace the labels", None)
    temperature: float = argument("Temperature of the soft labels", 2.0, min=0.1)


@dataclass
class PretrainingConfig:
    """The training."""

    output_dir: str = argument("New folder, or the folder of a run to resume (--resume_from_checkpoint)")
    resume_from_checkpoint: bool = argument(
        "Continue after the last finished epoch in output_dir", False, aliases=("resume",)
    )
    num_train_epochs: int = argument("Number of epochs", 50, min=1, aliases=("num_epochs",))
    time_limit: float | None = argument(
        "Seconds from the start of this call by which training ends, if its epochs do not end before", None, min=1
    )
    save_epochs: int = argument("Epochs between checkpoints, which also evaluate", 1, min=1)
    batch_size: int = argument("Images per step and process; an even number, for mixing", 128, min=2)
    optimizer: Literal["adamw", "muon"] = argument("muon for matrices leaves the rest to AdamW", "adamw")
    learning_rate: float = argument("Peak learning rate; cosine decay to zero; for muon about 7e-3", 1e-3, min=0)
    weight_decay: float = argument("Weight decay of matrices; biases and norms have none", 0.05, min=0)
    warmup_epochs: float = argument("Epochs of linear warmup before the cosine", 2.0, min=0)
    ema_decay: float = argument("Decay of the averaged weights, which are saved", 0.998, max=1)
    label_smoothing: float = argument("Label smoothing: share spread over all classes", 0.1, min=0, max=1)
    mixing: float = argument("Share of batches with mixup or cutmix", 0.2, min=0, max=1)
    augmentation: float = argument("Strength of the augmentation; 0 turns it off", 1.0, min=0)
    drop_path: float = argument("Stochastic depth: share of the blocks that an image skips", 0.0, min=0, max=0.9)
    torch_compile: bool = argument("Compile the network, which takes up to a minute", False)
    dataloader_num_workers: int = argument(
        "Number of processes that read and resize the images", 0, min=0, aliases=("num_workers",)
    )
    seed: int = argument("Random seed", 0, min=0)
