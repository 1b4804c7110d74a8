"""Frozen transformers too large for one device: each process holds a share of every block's weights.

A block gathers its weights when it runs, and frees them after it (torch's FSDP2). What is learnt is small: every
process holds it whole, and DistributedDataParallel keeps it the same, as without shards.
"""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, model_has_dtensor, parse_flag_from_env
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard, share_comm_ctx
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def is_asked_for() -> bool:
    """Whether the launcher's configuration is one of FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def check_options(auto_batch_size: bool) -> None:
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
    if auto_batch_size:
        raise ValueError(
            "auto_batch_size does not go with FSDP: a process that finds no room would leave the others "
            "waiting for its shards; set gradient_accumulation_steps by hand"
        )


def shard_transformers(module: nn.Module, accelerator: Accelerator) -> None:
    """Leaves each process its share of the frozen transformers of `module`, block by block, on its device."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = FullyShardedDataParallelPlugin().reshard_after_forward
    for child in list(module.modules()):
        if isinstance(child, VisionTransformer):
            blocks = [fully_shard(block, mesh=mesh, reshard_after_forward=reshard) for block in child.blocks]
            share_comm_ctx(blocks)
            for block in blocks:  # their memory must not come from an inference mode that is the first to need it
                block.unshard()
                block.reshard()


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
