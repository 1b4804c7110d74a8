"""Deterministic weights and inputs behind the figures: the same arrays on any machine, nothing to store.

Every tensor is named as in the reference's state dict (`feat.blocks.0.attn.qkv.weight`, `prompt.e_p_0`, ...).
"""

import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 array for the state-dict entry `name`."""
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
    x = rng.standard_normal(shape).astype(np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if "norm" in name and leaf == "weight":
        return 1 + 0.05 * x
    if leaf == "bias":
        return 0.02 * x
    if "prompt" in name:
        return 0.5 * x
    if "last" in name or ("proj" in name and "blocks" not in name and "patch_embed" not in name):
        return 0.05 * x
    if "cls_token" in name or "pos_embed" in name:
        return 0.2 * x
    if len(shape) > 1:
        fan_in = shape[-1] if len(shape) == 2 else np.prod(shape[1:])
        return (0.5 / np.sqrt(fan_in) * x).astype(np.float32)
    return 0.02 * x


def seeds(case_seed: int) -> dict[str, int]:
    """Seed of each part: the two backbones (`feat.*` names) and the rest of teacher and student."""
    return {
        "teacher_backbone": 101 + case_seed,
        # also of the query network (`s_feat`) of both models: use its `feat.*` names
        "student_backbone": 202 + case_seed,
        "teacher": case_seed * 10 + 1,
        "student": case_seed * 10 + 2,
    }


def batch(batch_size: int, first_class: int, end_class: int, case_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (batch, 3, 224, 224) in [0, 1) and labels in [first_class, end_class)."""
    rng = np.random.Generator(np.random.PCG64([7, case_seed]))
    return rng.random((batch_size, 3, 224, 224), dtype=np.float32), rng.integers(first_class, end_class, batch_size)
