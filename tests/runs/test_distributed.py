"""Devices, launchers and shards of frozen transformers. Accelerators of kinds that only GPUs have are stand-ins.

That training with shards is the same is in tests/recipes/test_processes.py.
"""

import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
from accelerate import DistributedType
from accelerate.utils import LoggerType
from tiny_models import images, labels_for, start_task, tiny_model
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from cdl_hf.arguments.config import CDLConfig
from cdl_hf.runs import distributed
from cdl_hf.runs.distributed import compile_blocks, shard_transformers


def test_deepspeed_is_refused(monkeypatch, tmp_path):
    deepspeed = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr(distributed, "Accelerator", lambda **settings: deepspeed)
    with pytest.raises(ValueError, match=r"DeepSpeed is not supported.*multi_gpu\.yaml.*fsdp\.yaml"):
        distributed.build_accelerator(CDLConfig(), tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "args", "told"),
    [
        ("VERSION", "1", {}, "fsdp_version to 2"),
        ("OFFLOAD_PARAMS", "true", {}, "fsdp_offload_params"),
        ("VERSION", "2", {"auto_find_batch_size": True}, "auto_find_batch_size does not go with FSDP"),
    ],
)
def test_options_that_shards_do_not_have_are_refused(monkeypatch, tmp_path, option, value, args, told):
    for name, given in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", f"FSDP_{option}": value}.items():
        monkeypatch.setenv(name, given)
    with pytest.raises(ValueError, match=told):
        distributed.build_accelerator(CDLConfig(**args), tmp_path)


def test_a_batch_must_divide_over_processes_and_parts(monkeypatch, tmp_path):
    three = SimpleNamespace(distributed_type=DistributedType.MULTI_GPU, num_processes=3, device=torch.device("cuda"))
    monkeypatch.setattr(distributed, "Accelerator", lambda **settings: three)
    args = CDLConfig(batch_size=16, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"batch_size \(16\) must be a multiple of 6: of the 3 processes times"):
        distributed.build_accelerator(args, tmp_path)
    assert distributed.build_accelerator(CDLConfig(batch_size=18), tmp_path) is three


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, without a key."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.api = SimpleNamespace(api_key=None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(distributed, "get_available_trackers", lambda: [SimpleNamespace(value="wandb")])
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


def test_wandb_without_a_key_is_refused_before_anything_is_made(train, command, wandb, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(*command, "--report_to", "wandb", "--output_dir", tmp_path / "run")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "report_to=wandb needs a key: run `wandb login`" in message
    assert not (tmp_path / "run").exists()


def test_wandbs_files_are_in_the_runs_folder(wandb, tmp_path, monkeypatch):
    started = {}
    monkeypatch.setenv("WANDB_MODE", "offline")
    distributed._check_wandb()
    accelerator = SimpleNamespace(
        project_dir=str(tmp_path / "logs"), init_trackers=lambda name, **how: started.update(how)
    )
    distributed.start_trackers(accelerator, CDLConfig(report_to="wandb"), {}, 0)
    assert started["init_kwargs"]["wandb"] == {"dir": str(tmp_path / "logs")} and (tmp_path / "logs").is_dir()


def test_trackio_tells_runs_apart_whose_folders_share_a_name(tmp_path):
    names = []
    accelerator = SimpleNamespace(
        init_trackers=lambda _, config, init_kwargs: names.append(init_kwargs["trackio"]["name"])
    )
    for folder in ("one", "other", "one"):
        accelerator.project_dir = tmp_path / folder / "seed0" / "logs"
        distributed.start_trackers(accelerator, CDLConfig(report_to="trackio"), {}, 0)
    one, other, again = names
    assert one == again != other and all(name.startswith("seed0-") for name in names)


def test_every_tracker_of_accelerate_can_be_named():
    named = set(get_args(get_type_hints(CDLConfig)["report_to"]))
    assert named == {"none", *(str(tracker.value) for tracker in LoggerType)} - {"all"}


def run_in_a_process(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_trackio_shows_a_run(command, tmp_path):
    pytest.importorskip("trackio")
    words = [*command, "--num_train_epochs", "1", "--report_to", "trackio", "--output_dir", tmp_path / "my_run"]
    home = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    run_in_a_process(["-m", "cdl_hf.commands.train", *words], **home)
    code = "import trackio; (run,) = trackio.Api().runs('cdl_hf'); print(run.name, run.config['learning_rate'])"
    name, rate = run_in_a_process(["-c", code], **home).split()
    assert name.startswith("my_run-") and rate == "0.01"
    trackio = ["-c", "from trackio.cli import main; main()"]
    asked = ["get", "metric", "--project", "cdl_hf", "--run", name, "--metric", "student/average_accuracy"]
    shown = json.loads(run_in_a_process([*trackio, *asked, "--json"], **home))
    assert [value["step"] for value in shown["values"]] == [6, 12, 18]


@pytest.mark.slow
def test_wandb_writes_a_run_offline(command, tmp_path):
    pytest.importorskip("wandb")
    words = [*command, "--num_train_epochs", "1", "--report_to", "wandb", "--output_dir", tmp_path / "my_run"]
    run_in_a_process(["-m", "cdl_hf.commands.train", *words], WANDB_MODE="offline")
    (file,) = (tmp_path / "my_run" / "logs" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"student/average_accuracy" in file.read_bytes()


def on(device: str, precision: str = "no", processes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), mixed_precision=precision, num_processes=processes)


@pytest.mark.parametrize(
    ("cuda", "environment", "reason"),
    [
        ("13.0", {}, "driver may be too old for CUDA 13.0"),
        (None, {}, "is built without CUDA"),
        ("13.0", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides it"),
        ("13.0", {"ACCELERATE_USE_CPU": "true"}, None),
    ],
)
def test_a_gpu_that_is_not_used_is_told(monkeypatch, tmp_path, cuda, environment, reason):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = distributed.describe_devices(on("cpu", processes=2)).splitlines()
    assert told[0].startswith("2 processes, on cpu (") and told[0].endswith(" threads each), in float32")
    if reason is None:
        assert len(told) == 1
    else:
        assert (
            told[1].startswith("warning: there is a GPU (GPU 0: NVIDIA A100), but it is not used")
            and reason in told[1]
        )


@pytest.mark.parametrize(
    ("device", "precision", "flags", "warned"),
    [
        ("cpu", "bf16", "flags : fpu avx2 avx512f", True),
        ("cpu", "bf16", "flags : fpu avx2 avx512_bf16", False),
        ("cpu", "bf16", "flags : amx_bf16 amx_tile", False),
        ("cpu", "bf16", "Features : fp asimd bf16", False),
        ("cpu", "bf16", None, False),
        ("cpu", "no", "flags : fpu avx2", False),
        ("mps", "bf16", "flags : fpu avx2", False),
    ],
)
def test_bf16_on_a_processor_without_it_is_warned_of(monkeypatch, tmp_path, device, precision, flags, warned):
    monkeypatch.setattr(distributed, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    told = distributed.describe_devices(on(device, precision))
    assert told.count("no bf16 instructions") == warned
    assert told.startswith(f"1 process, on {device}") and f"in {'float32' if precision == 'no' else 'bf16'}" in told


@pytest.fixture
def tf32_restored():
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32
    yield
    products.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize(("device", "allow_tf32"), [("cuda", True), ("cuda", False), ("cpu", True), ("cpu", False)])
def test_tf32_is_set_and_told_on_cuda_alone(monkeypatch, tmp_path, tf32_restored, device, allow_tf32):
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    products.allow_tf32 = cudnn.allow_tf32 = not allow_tf32
    accelerator = on(device)
    accelerator.distributed_type, accelerator.scaler = DistributedType.NO, None
    monkeypatch.setattr(distributed, "Accelerator", lambda **settings: accelerator)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    args = CDLConfig() if allow_tf32 else CDLConfig(allow_tf32=False)
    told = distributed.describe_devices(distributed.build_accelerator(args, tmp_path)).splitlines()[0]
    if device == "cpu":
        assert products.allow_tf32 is cudnn.allow_tf32 is not allow_tf32 and "TF32" not in told
    else:
        assert products.allow_tf32 is cudnn.allow_tf32 is allow_tf32
        assert told.endswith(f"on cuda (H100), in float32 {'with' if allow_tf32 else 'without'} TF32")
    assert torch.backends.mkldnn.matmul.fp32_precision != "tf32"  # of the CPU


def test_blocks_are_compiled_once_for_all_stages(monkeypatch, tmp_path):
    """And not by Accelerate, which would leave all stages but the first of an objective uncompiled."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    asked, accelerator = [], on("cpu")
    accelerator.distributed_type, accelerator.scaler = DistributedType.NO, None

    def make(**settings):
        asked.append(os.environ["ACCELERATE_DYNAMO_BACKEND"])
        return accelerator

    monkeypatch.setattr(distributed, "Accelerator", make)
    distributed.build_accelerator(CDLConfig(), tmp_path)
    assert asked == ["no"] and os.environ["ACCELERATE_DYNAMO_BACKEND"] == "eager"

    model, graphs = tiny_model("coda_prompt", tasks=0), []
    plain = tiny_model("coda_prompt", tasks=0)
    plain.load_state_dict(model.state_dict())
    compile_blocks(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    counters.clear()
    pixel_values = images()
    for _ in range(3):
        for each in (model, plain):
            torch.manual_seed(0)
            start_task(each)
        ours, theirs = (each.train()(pixel_values, labels_for(each)) for each in (model, plain))
        ours.loss.backward()
        assert torch.equal(ours.logits, theirs.logits)
        model.end_task(), plain.end_task()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2] > 0
    torch._dynamo.reset()


def test_nothing_is_compiled_unless_asked_for(monkeypatch):
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
    model = tiny_model("none")
    compile_blocks(model)
    assert all(block._compiled_call_impl is None for block in model.network.blocks)


@pytest.fixture
def two_processes(monkeypatch):
    """The first of two, of which the other is not there."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    torch.distributed.destroy_process_group()


def test_each_process_holds_its_share_of_the_blocks(two_processes):
    model = tiny_model("coda_prompt")
    whole = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    shard_transformers(model, two_processes)
    held = dict(model.named_parameters())
    assert held.keys() == whole.keys()
    for name, parameter in held.items():
        if name.startswith("backbone.blocks."):
            assert not parameter.requires_grad and parameter.to_local().nbytes == whole[name] / 2
        else:
            assert not isinstance(parameter, DTensor) and parameter.nbytes == whole[name]


def test_blocks_are_whole_one_at_a_time(two_processes):
    model = tiny_model("coda_prompt").train()
    shard_transformers(model, two_processes)
    blocks = model.backbone.blocks
    whole = []

    def note(*_):
        whole.append([i for i, block in enumerate(blocks) if not isinstance(block.mlp.fc1.weight, DTensor)])

    for block in blocks:  # within a block's turn, forwards and backwards
        block.mlp.fc1.register_forward_hook(note)
        block.mlp.fc1.register_full_backward_hook(note)
    loss = model(images(), labels_for(model)).loss
    assert whole == [[0], [1], [0], [1]]  # the query's pass, then the prompted one
    loss.backward()
    assert whole[4:] == [[1], [0]]
    note()
    assert whole[-1] == [] and model.prompt_pool.prompts.grad is not None


@pytest.mark.parametrize(
    ("given", "threads"),
    [({}, 4), ({"OMP_NUM_THREADS": "1"}, 1), ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 2)],
    ids=["unset", "set by the user", "set by a launcher"],
)
def test_the_threads_of_the_user_are_kept(monkeypatch, tmp_path, given, threads):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "num_cores", lambda: 4)
    distributed.build_accelerator(CDLConfig(), tmp_path)
    assert torch.get_num_threads() == threads  # conftest.py has set one, and sets it again
