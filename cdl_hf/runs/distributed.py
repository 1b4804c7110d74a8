"""Accelerator and processes: trackers, errors and counts that all ranks share, frozen weights in shards (FSDP2).

With shards, a block of a frozen transformer gathers its weights when it runs, and frees them after it. What is trained
is small: every process holds it whole, and DistributedDataParallel keeps it the same, as without shards.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedType, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    TorchDynamoPlugin,
    gather_object,
    model_has_dtensor,
    parse_flag_from_env,
    patch_environment,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard, share_comm_ctx
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from ..arguments.config import CDLConfig
from ..models.low_rank import LowRankUpdate
from ..models.modeling_prompt_vit import frozen_networks
from ..models.networks import network_of
from ..utils import num_cores

CPU_INFO = Path("/proc/cpuinfo")
# All blocks share their code. It is compiled for each model, with and without gradients, prefix, suffix, rows and
# inference mode; beyond torch's limit of 8, further ones would run uncompiled.
COMPILED_VARIANTS = 64


def _has_chosen_threads(environment: Mapping[str, str]) -> bool:
    """Whether the user has set the number of threads: launchers set it to 1 themselves, for any number of cores."""
    is_launched = not environment.keys().isdisjoint(("LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND"))
    return "OMP_NUM_THREADS" in environment and not is_launched


def build_accelerator(args: CDLConfig, folder: Path) -> Accelerator:
    """An Accelerator whose loaders split a batch over the processes, so that `batch_size` does not depend on them.

    On a CPU each process takes its share of the cores: launchers leave it one thread. On a CUDA device it sets for the
    whole process whether torch computes in TF32.

    Raises:
        ValueError: The package of the tracker that `report_to` names is not installed, a batch cannot be divided over
            the processes, or the launcher asks for what the stages cannot do.
    """
    if args.report_to != "none" and args.report_to not in [str(tracker.value) for tracker in get_available_trackers()]:
        raise ValueError(f"report_to={args.report_to} needs a package that is missing: pip install {args.report_to}")
    if args.report_to == "wandb":
        _check_wandb()
    if uses_fsdp():
        check_fsdp_options(args.auto_find_batch_size)
    # what is trained is neither sharded nor compiled, see `shard_transformers` and `compile_blocks`
    with patch_environment(ACCELERATE_USE_FSDP="false", ACCELERATE_DYNAMO_BACKEND="no"):
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
    accumulates = args.gradient_accumulation_steps > 1 or args.auto_find_batch_size
    if args.schedule == "same_step" and accelerator.scaler is not None and accumulates:
        raise ValueError(
            "in fp16 the first of two models that step together would change the loss scale within the other's batch: "
            "take mixed precision bf16, schedule=stages, or neither gradient_accumulation_steps nor "
            "auto_find_batch_size"
        )
    shares = accelerator.num_processes * args.gradient_accumulation_steps
    if args.batch_size % shares:
        raise ValueError(
            f"batch_size ({args.batch_size}) must be a multiple of {shares}: of the {accelerator.num_processes} "
            f"processes times gradient_accumulation_steps ({args.gradient_accumulation_steps})"
        )
    if accelerator.device.type == "cpu" and not _has_chosen_threads(os.environ):
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, num_cores() // local_processes))
    if accelerator.device.type == "cuda":
        # not `set_float32_matmul_precision`, which also changes products on the CPU
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
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
    tf32 = ""
    if device.type == "cuda":
        in_tf32 = torch.backends.cuda.matmul.allow_tf32 and torch.cuda.is_tf32_supported()
        tf32 = " with TF32" if in_tf32 else " without TF32"
    lines = [f"{processes} process{'es' if processes > 1 else ''}, on {device}{name}, in {precision}{tf32}"]
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
    """Whether the processor is known to have no instructions for bfloat16; only Linux has the list."""
    try:
        words = set(CPU_INFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return not words & {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, the latter of ARM


def progress_bar(**options: Any) -> tqdm:
    """A progress bar of the main process; none where stderr is no terminal, which would get a line for each update."""
    return tqdm(leave=False, disable=None if PartialState().is_main_process else True, **options)


def start_trackers(accelerator: Accelerator, args: CDLConfig, config: dict[str, Any], steps: int) -> None:
    """Starts the tracker that `report_to` names, with the arguments as its configuration.

    TensorBoard and wandb have their files in `logs/`; trackio where its dashboard looks for them, all runs together.
    There a run has the name of its folder with a digest of the folder's path, as runs are continued by their names.

    Args:
        steps: Steps done before, in a resumed run: TensorBoard forgets what was logged after them, trackio continues
            the run of this name.
    """
    if args.report_to != "none":
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in config.items()}
        logs = Path(accelerator.project_dir)
        logs.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere if it is not there
        folder = logs.parent.resolve()
        name = f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
        how = {
            "tensorboard": {"purge_step": steps + 1},
            "trackio": {"name": name, "resume": "allow" if steps else "never"},
            "wandb": {"dir": str(logs)},
        }
        accelerator.init_trackers("cdl_hf", config=plain, init_kwargs=how)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """A user's mistake that any process meets within is raised by all of them after it.

    Without it the others would wait for the one that has stopped. Processes must not wait for each other within.

    Raises:
        ValueError: The first process's that met one.
    """
    mistake = None
    try:
        yield
    except (ValueError, OSError) as error:
        mistake = str(error)
    for found in gather_object([mistake]):
        if found is not None:
            raise ValueError(found)


def copy_to(device: torch.device, values: Tensor) -> Tensor:
    """A tensor of the CPU on a device; neither waits for the other."""
    if device.type == "cuda":
        values = values.pin_memory()  # the copy of other memory waits for all kernels
    return values.to(device, non_blocking=True)


class AsyncCopy:
    """A copy of a tensor on the CPU. Only reading it waits, and for no more than the device was given before it.

    Args:
        values: On any device; must not change before they are read.
    """

    def __init__(self, values: Tensor):
        self._values = values.detach().to("cpu", non_blocking=True)  # from CUDA into pinned memory
        self._arrival = None
        if values.device.type != "cpu":
            self._arrival = torch.Event(values.device)
            self._arrival.record()

    def has_arrived(self) -> bool:
        """Whether [`read`] would not wait."""
        return self._arrival is None or self._arrival.query()

    def read(self) -> Tensor:
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._values


class AsyncReduce:
    """A sum over all processes. Only reading it waits, and for no more than the device was given before it was asked.

    A sum asked for between two passes is there while the device is busy with the second, which need not stop for it.

    Args:
        value: A scalar on the accelerator's device, from each process.
    """

    def __init__(self, accelerator: Accelerator, value: Tensor):
        self._count = AsyncCopy(accelerator.reduce(value))

    def __int__(self) -> int:
        return int(self._count.read())


def uses_fsdp() -> bool:
    """Whether the launcher's configuration is one of FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def check_fsdp_options(auto_find_batch_size: bool) -> None:
    """Refuses what does not go with shards of frozen weights.

    Raises:
        ValueError: The launcher's configuration, or the run, asks for it.
    """
    plugin = FullyShardedDataParallelPlugin()  # reads what the launcher has set
    ours = "as in accelerate_configs/fsdp.yaml"
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP 1 is not supported: set fsdp_version to 2, {ours}")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError(f"fsdp_offload_params is not supported: set it to false, {ours}")
    if auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size does not go with FSDP: a process that finds no room would leave the others "
            "waiting for its shards; set gradient_accumulation_steps by hand"
        )


def shard_transformers(module: nn.Module, accelerator: Accelerator) -> None:
    """Leaves each process its share of the frozen transformers of `module`, block by block, on its device.

    Raises:
        ValueError: A model has LoRA, which keeps whole weights with its updates folded in.
    """
    if any(isinstance(part, LowRankUpdate) for part in module.modules()):
        raise ValueError("lora keeps the whole weights of its layers, so that FSDP saves nothing: launch without it")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = FullyShardedDataParallelPlugin().reshard_after_forward
    for _, child in list(frozen_networks(module)):
        of_network = network_of(child).blocks  # a network without such blocks stays whole
        blocks = [fully_shard(block, mesh=mesh, reshard_after_forward=reshard) for block in of_network]
        if blocks:
            share_comm_ctx(blocks)
            for block in blocks:  # their memory must not come from an inference mode that is the first to need it
                block.unshard()
                block.reshard()


def compile_blocks(module: nn.Module) -> None:
    """Compiles the blocks of the frozen transformers of `module` where the launcher asks for it (`--dynamo_backend`).

    In place and once for all stages and evaluations. `Accelerator.prepare` would compile an objective in its first
    stage alone: afterwards it takes the objective for one that it has prepared already.
    """
    plugin = TorchDynamoPlugin()  # reads what the launcher has set
    if plugin.backend == DynamoBackend.NO:
        return
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, COMPILED_VARIANTS)
    for _, network in frozen_networks(module):
        for block in network_of(network).blocks:
            block.compile(**plugin.to_kwargs())


def prepare_module(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """As `Accelerator.prepare`, which would refuse a module with shards: they need no gradients, nor DDP."""
    if not model_has_dtensor(module):
        return accelerator.prepare(module)
    shards = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, shards)
    module = accelerator.prepare_model(module, evaluation_mode=True)  # mixed precision alone
    return DistributedDataParallel(module, **accelerator.ddp_handler.to_kwargs())


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state of `module` with its transformers whole, on the main process's CPU; to be asked by all together."""
    if not model_has_dtensor(module):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict  # takes half a second

    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
