import errno
import os
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from cdl_hf.runs.checkpointing import (
    checkpoint_name,
    list_checkpoints,
    load_newest_checkpoint,
    load_trained_state,
    save_checkpoint,
    trained_state,
)


@pytest.fixture
def module() -> nn.Module:
    """As an objective: its head beside a model with nothing but a frozen network."""
    model = tiny_model("none")
    model.head = nn.Identity()
    return nn.ModuleDict({"model": model, "head": nn.Linear(8, 2)})


def at(step: int) -> str:
    return checkpoint_name(0, 0, step)


def test_names_tell_where_in_the_run_and_are_ordered_by_it(tmp_path):
    """Numbers are names of version 0.1.0, from which a run may have been resumed."""
    assert checkpoint_name(2, 1, 420) == "task_002-stage_1-step_00000420"
    names = [
        "000000000099",
        at(0),
        at(7),
        checkpoint_name(0, 1, 7),
        checkpoint_name(1, 0, 7),
        checkpoint_name(10, 0, 8),
    ]
    for name in reversed(names):
        (tmp_path / name).mkdir()
    (tmp_path / "notes").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == names


def test_newest_checkpoint_is_read_back(tmp_path):
    for number in (1, 2, 10):
        save_checkpoint(tmp_path, at(number), {"task": number, "tensor": torch.full((3,), float(number))})
    state = load_newest_checkpoint(tmp_path)
    assert state["task"] == 10 and torch.equal(state["tensor"], torch.full((3,), 10.0))


def test_only_the_newest_are_kept(tmp_path):
    for number in range(5):
        save_checkpoint(tmp_path, at(number), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [at(3), at(4)]


@pytest.mark.parametrize("damage", ["truncated", "altered", "checksum altered", "no checksum", "no state"])
def test_damaged_checkpoint_is_passed_over(tmp_path, damage):
    save_checkpoint(tmp_path, at(1), {"task": 1})
    newest = save_checkpoint(tmp_path, at(2), {"task": 2})
    content = (newest / "state.pt").read_bytes()
    if damage == "truncated":
        (newest / "state.pt").write_bytes(content[:-10])
    elif damage == "altered":
        (newest / "state.pt").write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif damage == "checksum altered":
        (newest / "sha256").write_bytes(b"\xff" + (newest / "sha256").read_bytes()[1:])
    else:
        (newest / ("sha256" if damage == "no checksum" else "state.pt")).unlink()
    reason = "is missing" if damage.startswith("no ") else "its checksum does not fit"
    with pytest.warns(UserWarning, match=rf"damaged \(.*{reason}\)"):
        assert load_newest_checkpoint(tmp_path)["task"] == 1


def test_unfinished_checkpoint_is_not_seen(tmp_path):
    save_checkpoint(tmp_path, at(1), {"task": 1}).rename(tmp_path / f".{at(2)}")
    assert load_newest_checkpoint(tmp_path) is None


def test_checkpoint_with_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code of a checkpoint was run",))

    save_checkpoint(tmp_path, at(1), {"task": 1})
    save_checkpoint(tmp_path, at(2), {"trap": Trap()})
    with pytest.warns(UserWarning, match="more than tensors"):
        assert load_newest_checkpoint(tmp_path)["task"] == 1


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_full_disk_keeps_the_checkpoints_there_are(tmp_path, monkeypatch, failing):
    for number in (1, 2):
        save_checkpoint(tmp_path, at(number), {"task": number})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "rename": (Path, "rename")}[failing]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, at(3), {"task": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == [at(1), at(2)]
    assert load_newest_checkpoint(tmp_path)["task"] == 2


@pytest.mark.parametrize("suffix", ["", ".cdl_hf-unfinished"])  # none: of earlier versions
def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path, suffix):
    (tmp_path / f".{at(7)}{suffix}").mkdir()
    (tmp_path / f".{at(7)}{suffix}" / "state.pt").write_bytes(b"half of it")
    save_checkpoint(tmp_path, at(1), {})
    assert [path.name for path in tmp_path.iterdir()] == [at(1)]


def damage(path):
    (path / "state.pt").write_bytes(b"")


def test_damaged_ones_with_higher_numbers_do_not_push_new_ones_out(tmp_path):
    whole = save_checkpoint(tmp_path, at(10), {"task": 10})
    damage(save_checkpoint(tmp_path, at(12), {"task": 12}))
    with pytest.warns(UserWarning, match="damaged"):
        assert load_newest_checkpoint(tmp_path)["task"] == 10
    new = save_checkpoint(tmp_path, at(11), {"task": 11})
    assert sorted(tmp_path.iterdir()) == [whole, new]
    assert load_newest_checkpoint(tmp_path)["task"] == 11


def test_where_none_is_whole_nothing_is_started_over(tmp_path):
    for number in (10, 12):
        damage(save_checkpoint(tmp_path, at(number), {}))
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=f"{at(10)}.*--overwrite_output_dir"),
    ):
        load_newest_checkpoint(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_that_cannot_be_read_for_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, at(1), {})

    def failing(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(ValueError, match="cannot be read: Input/output error"):
        load_newest_checkpoint(tmp_path)


def test_what_others_have_left_among_the_checkpoints_stops_no_save(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / f"._{at(1)}").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "2024" / "more").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    strangers = set(tmp_path.iterdir())
    for number in range(3):
        save_checkpoint(tmp_path, at(number), {"task": number})
    assert load_newest_checkpoint(tmp_path)["task"] == 2
    assert {path.name for path in set(tmp_path.iterdir()) - strangers} == {at(1), at(2)}


def test_trained_state_leaves_the_backbone_out(module):
    assert set(trained_state(module)) == {"head.weight", "head.bias"}


def test_trained_state_is_put_back(module):
    saved = {name: value.clone() for name, value in trained_state(module).items()}
    nn.init.zeros_(module["head"].weight)
    load_trained_state(module, saved)
    assert torch.equal(module["head"].weight, saved["head.weight"])


def test_state_of_another_model_is_refused(module):
    with pytest.raises(ValueError, match=r"head\.weight"):
        load_trained_state(module, {"head.weight": torch.zeros(3, 8), "head.bias": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"head\.bias"):
        load_trained_state(module, {"head.weight": torch.zeros(2, 8)})
