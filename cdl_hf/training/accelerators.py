"""The Accelerator of a run, and its trackers."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env, patch_environment

from ..utils import num_cores
from . import sharding
from .arguments import TrainingArguments

CPU_INFO = Path("/proc/cpuinfo")


def build_accelerator(args: TrainingArguments, folder: Path) -> Accelerator:
    """An Accelerator whose loaders split a batch over the processes, so that `batch_size` does not depend on them.

    On a CPU each process takes its share of the cores: launchers leave it one thread.

    Raises:
        ValueError: The package of the tracker that `report_to` names is not installed, a batch cannot be divided over
            the processes, or the launcher asks for what the stages cannot do.
    """
    if args.report_to != "none" and args.report_to not in [str(tracker.value) for tracker in get_available_trackers()]:
        raise ValueError(f"report_to={args.report_to} needs a package that is missing: pip install {args.report_to}")
    if args.report_to == "wandb":
        _check_wandb()
    if sharding.is_asked_for():
        sharding.check_options(args.auto_batch_size)
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # what is learnt is not sharded, see sharding.py
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
            # no buffer changes in training, and those of a classifier are large
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            log_with=None if args.report_to == "none" else args.report_to,
            project_dir=folder / "logs",
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "DeepSpeed is not supported: launch with accelerate_configs/multi_gpu.yaml, or with fsdp.yaml where the "
            "models do not fit into one device's memory"
        )
    shares = accelerator.num_processes * args.gradient_accumulation_steps
    if args.batch_size % shares:
        raise ValueError(
            f"batch_size ({args.batch_size}) must be a multiple of {shares}: of the {accelerator.num_processes} "
            f"processes times gradient_accumulation_steps ({args.gradient_accumulation_steps})"
        )
    if accelerator.device.type == "cpu":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, num_cores() // local_processes))
    return accelerator


def _check_wandb() -> None:
    """
    Raises:
        ValueError: wandb would ask for a key, or stop for want of one.
    """
    import wandb

    offline = os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun")
    if not offline and wandb.api.api_key is None:  # of the environment, or what `wandb login` has stored
        raise ValueError(
            "report_to=wandb needs a key: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to keep the "
            "metrics in the output folder"
        )


def describe_devices(accelerator: Accelerator) -> str:
    """What a run computes on: devices, precision, processes; and what may be wrong with them, each in a line."""
    device, processes = accelerator.device, accelerator.num_processes
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    if device.type == "cpu":
        name = (
            f" ({torch.get_num_threads()} threads each)" if processes > 1 else f" ({torch.get_num_threads()} threads)"
        )
    precision = {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    lines = [f"{processes} process{'es' if processes > 1 else ''}, on {device}{name}, in {precision}"]
    if device.type == "cpu":
        lines += _unused_gpu()
        if precision == "bf16" and lacks_bf16():
            lines.append(
                "warning: this processor has no bf16 instructions (avx512_bf16, amx_bf16), without which bf16 takes "
                "many times as long as float32: launch with --mixed_precision no"
            )
    return "\n".join(lines)


def _unused_gpu() -> list[str]:
    """A line where there is an NVIDIA GPU that torch does not find, though nobody has said so."""
    if parse_flag_from_env("ACCELERATE_USE_CPU") or torch.cuda.is_available():
        return []
    if (command := shutil.which("nvidia-smi")) is None:
        return []
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus = [line.split(" (UUID")[0] for line in listed.splitlines() if line.startswith("GPU ")]
    if not gpus:
        return []
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        reason = "CUDA_VISIBLE_DEVICES hides it"
    elif torch.version.cuda is None:
        reason = f"this torch ({torch.__version__}) is built without CUDA"
    else:
        reason = f"its driver may be too old for CUDA {torch.version.cuda}, for which this torch is built"
    return [f"warning: there is a GPU ({gpus[0]}), but it is not used: {reason}"]


def lacks_bf16() -> bool:
    """Whether the processor is known to have no instructions for bfloat16; only Linux tells."""
    try:
        words = set(CPU_INFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return not words & {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, the latter of ARM


def start_trackers(accelerator: Accelerator, args: TrainingArguments, config: dict[str, Any], steps: int) -> None:
    """Starts the tracker that `report_to` names, with the arguments as its configuration; its files are in `logs/`.

    Args:
        steps: Steps done before, in a resumed run: TensorBoard forgets what was logged after them.
    """
    if args.report_to != "none":
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in config.items()}
        logs = Path(accelerator.project_dir)
        logs.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere if it is not there
        how = {"tensorboard": {"purge_step": steps + 1}, "wandb": {"dir": str(logs)}}
        accelerator.init_trackers("cdl_hf", config=plain, init_kwargs=how)
