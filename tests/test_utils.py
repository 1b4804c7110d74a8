"""Files that are written whole or not at all, and whose damage is noticed."""

import errno
import os
import stat
import subprocess

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from cdl_hf.utils import (
    DamagedFile,
    atomic_folder,
    atomic_write,
    num_cores,
    remove,
    seal,
    verify,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("checksum", [False, True])
def test_a_file_is_written_with_the_rights_of_any_other(tmp_path, checksum):
    with atomic_write(tmp_path / "a", checksum=checksum) as file:
        file.write(b"one ")
        file.write(memoryview(b"two"))
    (tmp_path / "other").touch()
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert names(tmp_path) == ["a", *["a.sha256"] * checksum, "other"]


@pytest.mark.parametrize("failing", ["content", "fsync", "rename"])
def test_what_cannot_be_written_leaves_the_earlier_file(tmp_path, monkeypatch, failing):
    write_text(tmp_path / "a", "earlier")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        if failing != "content":
            patch.setattr(os, {"fsync": "fsync", "rename": "replace"}[failing], full)
        with atomic_write(tmp_path / "a") as file:
            file.write(b"later")
            if failing == "content":
                full()
    assert (tmp_path / "a").read_text() == "earlier" and names(tmp_path) == ["a"]


def test_file_and_folder_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def remember(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, (tmp_path / "a").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    write_text(tmp_path / "a", "text")
    assert flushed == [((tmp_path / "a").stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def without_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", without_folders)
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_a_folder_takes_the_place_of_another(tmp_path):
    for number in (1, 2):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / f"{number}").mkdir()
            (folder / f"{number}" / "weights").write_text("many")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["2"]
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "model"):
        full()
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["2"]


def test_hidden_files_and_folders_of_others_stay(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".env").write_text("mine")
    with atomic_folder(tmp_path / "cache"):
        pass
    write_text(tmp_path / "env", "new")
    assert names(tmp_path) == [".cache", ".env", "cache", "env"] and (tmp_path / ".env").read_text() == "mine"


def test_names_that_are_not_utf8_come_back_from_json(tmp_path):
    import json

    write_json(tmp_path / "a.json", {"name": os.fsdecode(b"\xff.png")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": os.fsdecode(b"\xff.png")}


def test_links_are_removed_and_not_what_they_lead_to(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert names(tmp_path) == ["far"] and names(tmp_path / "far") == ["mine"]


@pytest.fixture(params=["model.safetensors", "answers.npy"])
def kept(request, tmp_path):
    """A file with a checksum."""
    path = tmp_path / request.param
    with atomic_write(path, checksum=path.suffix == ".npy") as file:
        file.write(seal(save({"a": torch.arange(100.0)}, {"name": 'with "sha256":"' + "0" * 64})))
    return path


def test_a_whole_file_passes_and_is_read(kept):
    verify(kept)
    assert torch.equal(load_file(kept)["a"], torch.arange(100.0))
    with safe_open(kept, "pt") as file:
        assert file.metadata()["name"].startswith("with ")
    if kept.suffix == ".npy":
        subprocess.run(["sha256sum", "-c", f"{kept.name}.sha256"], cwd=kept.parent, check=True, capture_output=True)


@pytest.mark.parametrize("damage", ["emptied", "cut", "very short", "bit in the middle", "last bit", "bit in front"])
def test_damage_is_noticed(kept, damage):
    content = bytearray(kept.read_bytes())
    if damage.startswith("bit") or damage == "last bit":
        content[{"bit in the middle": len(content) // 2, "last bit": -1, "bit in front": 20}[damage]] ^= 1
    else:
        del content[{"emptied": 0, "cut": -9, "very short": 5}[damage] :]
    kept.write_bytes(content)
    with pytest.raises(DamagedFile, match=f"{kept.name} is damaged"):
        verify(kept)


def test_a_checksum_whose_name_is_damaged_is_not_taken_for_none(tmp_path):
    path = tmp_path / "model.safetensors"
    whole = seal(save({"a": torch.arange(4.0)}, {"counts": "[[1, 2]]"}))
    start = 8 * whole.index(b'"sha256":"')
    for place in range(start, start + 8 * 11):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises((DamagedFile, SafetensorError)), safe_open(path, "pt"):  # which looks at the JSON alone
            verify(path)


def test_files_of_earlier_versions_pass(tmp_path):
    (tmp_path / "old.npy").write_bytes(b"numbers")
    (tmp_path / "old.safetensors").write_bytes(save({"a": torch.ones(3)}))
    verify(tmp_path / "old.npy")
    verify(tmp_path / "old.safetensors")


def test_cores_are_counted_where_the_system_does_not_tell_which_may_be_used(monkeypatch):
    assert num_cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert num_cores() == os.cpu_count()
