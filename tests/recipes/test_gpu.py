"""A run on a GPU, for a machine that has one: `pytest -m gpu`."""

import json

import pytest
import torch

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
