"""A run on a GPU, for a machine that has one: `pytest -m gpu`."""

import json

import pytest
import torch

from cdl_hf.benchmark.gpu_checks import Workbench, waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_a_run_uses_the_gpu(train, command, tmp_path):
    train(*command, "--output_dir", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["latency_ms"]["device"] == torch.cuda.get_device_name()
    assert len(results["student"]["accuracy_matrix"]) == 3


def test_no_step_waits_for_the_gpu():
    bench = Workbench(torch.device("cuda"), "vit_small_patch16_224", "vit_tiny_patch16_224")
    assert {role: each["places"] for role, each in waits(bench)} == {"teacher": {}, "student": {}}
