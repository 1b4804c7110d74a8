"""The launch configurations are what accelerate itself would write and accept."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from cdl_hf.runs import distributed

FOLDER = Path(__file__).parents[1] / "accelerate_configs"
NAMES = ("cpu", "single_gpu", "multi_gpu", "fsdp", "multi_node")
# FSDP2 dropped these, or has them for another wrap policy.
SINCE_1_15 = {"fsdp_activation_checkpointing_offload"}  # off in the file, and passed over by an older accelerate
NOT_IN_FSDP2 = {
    "fsdp_backward_prefetch",
    "fsdp_forward_prefetch",
    "fsdp_min_num_params",
    "fsdp_sharding_strategy",
    "fsdp_sync_module_states",
    "fsdp_transformer_layer_cls_to_wrap",
    "fsdp_use_orig_params",
}


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def test_there_is_one_file_for_each_kind_of_machine():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_has_the_full_key_set(name):
    """Loaded and written back by accelerate, the file neither gains nor loses a key, nor changes a value."""
    written_back = load_config_from_file(str(FOLDER / f"{name}.yaml")).to_dict()
    assert written_back == {key: value for key, value in read(name).items() if value is not None}


@pytest.mark.parametrize("name", NAMES)
def test_says_how_to_launch_it(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"accelerate launch --config_file accelerate_configs/{name}.yaml" in text
    assert "Tried: " in text


def test_fsdp_has_every_option_of_fsdp2():
    options = {option.lstrip("-") for action in launch_command_parser()._actions for option in action.option_strings}
    fsdp = {option for option in options if option.startswith("fsdp_")}
    assert set(read("fsdp")["fsdp_config"]) == (fsdp | SINCE_1_15) - NOT_IN_FSDP2
    assert read("fsdp")["fsdp_config"]["fsdp_version"] == 2


def test_only_cpu_stays_off_the_gpu():
    assert [name for name in NAMES if read(name)["use_cpu"]] == ["cpu"]
    assert read("cpu")["mixed_precision"] == "no"


def test_what_the_launcher_makes_of_fsdp_is_understood(monkeypatch):
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / "fsdp.yaml"), "recipes/train.py"])
    for name, value in prepare_multi_gpu_env(_validate_launch_command(args)[0]).items():
        monkeypatch.setenv(name, value)
    assert distributed.uses_fsdp()
    distributed.check_fsdp_options(auto_find_batch_size=False)
