"""What a launcher may ask for; the Accelerators are stand-ins, as only GPUs have these kinds."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from cdl_hf.training import accelerators
from cdl_hf.training.arguments import TrainingArguments


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_models_in_parts_are_refused(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(accelerators, "Accelerator", lambda **settings: SimpleNamespace(distributed_type=kind))
    with pytest.raises(ValueError, match=rf"{kind.value} is not supported yet.*multi_gpu\.yaml"):
        accelerators.build_accelerator(TrainingArguments(), tmp_path)


def test_a_batch_must_divide_over_processes_and_parts(monkeypatch, tmp_path):
    three = SimpleNamespace(distributed_type=DistributedType.MULTI_GPU, num_processes=3, device=torch.device("cuda"))
    monkeypatch.setattr(accelerators, "Accelerator", lambda **settings: three)
    args = TrainingArguments(batch_size=16, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"batch_size \(16\) must be a multiple of 6: of the 3 processes times"):
        accelerators.build_accelerator(args, tmp_path)
    assert accelerators.build_accelerator(TrainingArguments(batch_size=18), tmp_path) is three
