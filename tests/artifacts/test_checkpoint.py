"""A checkpoint is whole or is not there, and what changed since is noticed."""

import errno
import fcntl
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bomb import Bomb
from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import MANIFEST, Checkpoint, load_checkpoint, load_newest, not_finite, save, step_name, steps
from jepakit.core.errors import UserError
from jepakit.core.files import locked

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", MANIFEST)
Damage = Callable[[Path], None]


def example(step: int, numbers: int = 100) -> Checkpoint:
    draw = torch.Generator().manual_seed(step)
    model = {
        "weight": torch.randn(numbers, 3, generator=draw),
        "half": torch.randn(5, generator=draw).bfloat16(),
        "count": torch.tensor(step),
        "view": torch.randn(6, 4, generator=draw).T,  # not contiguous
    }
    return Checkpoint({"model": model, "optimizer": {"weight.exp_avg": torch.randn(7, generator=draw)}}, {"step": step})


def equal(a: Checkpoint, b: Checkpoint) -> bool:
    return a.state == b.state and all(
        torch.equal(a.tensors[group][name], b.tensors[group][name]) and a.tensors[group][name].dtype == value.dtype
        for group, tensors in b.tensors.items()
        for name, value in tensors.items()
    )


def filled(folder: Path, *at: int, keep: int = 10) -> Path:
    for step in at:
        assert save(folder, step, example(step), keep)
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The kernel's own limit: a write beyond it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    assert equal(load_checkpoint(tmp_path / step_name(3)), example(3)) and equal(load_newest(tmp_path), example(3))
    assert sorted(p.name for p in (tmp_path / step_name(3)).iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, empty, delete])
def test_any_damage_is_named_and_the_one_before_is_taken_loudly(
    tmp_path: Path, name: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 5, 9)
    damage(tmp_path / step_name(9) / name)
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / step_name(9))
    message = str(caught.value)
    assert step_name(9) in message and "\n" not in message
    # a flipped letter in the manifest may make it name a file that is not there, or a sum that no file has
    assert name in message or name == MANIFEST
    with caplog.at_level(logging.WARNING, "jepakit"):
        assert equal(load_newest(tmp_path), example(5))
    assert any("step 9" in r.getMessage() and r.levelno >= logging.WARNING for r in caplog.records)


def test_with_all_corrupt_there_is_an_error_and_never_a_start_from_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 0, 5, 9)
    for step in (0, 5, 9):
        flip(tmp_path / step_name(step) / "model.safetensors")
    with caplog.at_level(logging.WARNING, "jepakit"), pytest.raises(UserError, match="3 tried"):
        load_newest(tmp_path)
    assert len([r for r in caplog.records if "corrupt" in r.getMessage()]) == 3
    with pytest.raises(UserError, match="nothing to resume"):
        load_newest(tmp_path / "none")


@pytest.mark.parametrize(
    "text", ["[]", "5", "null", '"x"', "[1, 2]", '{"../../secret": "0"}', '{"/etc/passwd": "0"}', '{"..": "0"}']
)
def test_a_manifest_that_makes_no_sense_or_leads_outside_is_refused(tmp_path: Path, text: str) -> None:
    filled(tmp_path, 5, 9)
    (tmp_path / step_name(9) / MANIFEST).write_text(text)
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / step_name(9))
    assert equal(load_newest(tmp_path), example(5))


def test_a_file_that_no_manifest_vouches_for_is_not_read(tmp_path: Path) -> None:
    filled(tmp_path, 9)
    manifest = tmp_path / step_name(9) / MANIFEST
    sums = json.loads(manifest.read_text())
    del sums["state.json"]
    manifest.write_text(json.dumps(sums))
    with pytest.raises(UserError, match=r"state\.json"):
        load_checkpoint(tmp_path / step_name(9))


def test_a_pickle_in_the_place_of_weights_is_refused_and_does_not_run(tmp_path: Path) -> None:
    filled(tmp_path, 9)
    folder = tmp_path / step_name(9)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"model\.safetensors has changed"):
        load_checkpoint(folder)
    sums = json.loads((folder / MANIFEST).read_text())  # with the right sum it is still no safetensors
    sums["model.safetensors"] = checkpoint._sha256(folder / "model.safetensors")
    (folder / MANIFEST).write_text(json.dumps(sums))
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_what_a_killed_save_left_is_swept_and_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    (tmp_path / ".tmp-123").mkdir()
    (tmp_path / ".tmp-123" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-link-123").symlink_to("step-00000007")
    assert steps(tmp_path) == [5] and equal(load_newest(tmp_path), example(5))
    filled(tmp_path, 9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", step_name(5), step_name(9)]


def test_the_newest_are_kept_and_latest_points_at_the_newest(tmp_path: Path) -> None:
    for step in (0, 5, 10, 15):
        filled(tmp_path, step, keep=2)
        assert os.readlink(tmp_path / "latest") == step_name(step)
        assert equal(load_checkpoint(tmp_path / "latest"), example(step))
    assert steps(tmp_path) == [15, 10]


def test_the_same_step_may_be_saved_again_over_a_broken_one(tmp_path: Path) -> None:
    filled(tmp_path, 5, 9)
    flip(tmp_path / step_name(9) / "model.safetensors")
    filled(tmp_path, 9)
    assert equal(load_newest(tmp_path), example(9)) and steps(tmp_path) == [9, 5]


def test_a_full_disk_leaves_the_older_checkpoints_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 5)
    with caplog.at_level(logging.WARNING, "jepakit"), no_file_larger_than(20_000):
        assert save(tmp_path, 9, example(9, numbers=100_000), 1) is False
    assert any("step 9 NOT saved" in r.getMessage() for r in caplog.records)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", step_name(5)]
    assert os.readlink(tmp_path / "latest") == step_name(5) and equal(load_newest(tmp_path), example(5))
    assert save(tmp_path, 9, example(9), 1) is True  # there is room again
    assert equal(load_newest(tmp_path), example(9))


def test_a_broken_newer_checkpoint_does_not_push_out_the_good_ones(tmp_path: Path) -> None:
    for step in (20, 30):
        assert checkpoint.save(tmp_path, step, Checkpoint({"model": {"w": torch.ones(2)}}, {"step": step}), keep=2)
    (tmp_path / "step-00000030" / "state.json").write_text("{")
    found = checkpoint.load_newest(tmp_path)
    checkpoint.set_aside(tmp_path, found.state["step"])
    checkpoint.save(tmp_path, 23, Checkpoint({"model": {"w": torch.ones(2)}}, {"step": 23}), keep=1)
    assert checkpoint.steps(tmp_path) == [23]
    assert checkpoint.load_newest(tmp_path).state["step"] == 23
    assert list(tmp_path.glob("broken-step-00000030-*"))  # kept, for whoever wants to look


# ---- file systems that cannot do everything


def no_links(self: Path, target: str, **more: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted", str(self))


def test_where_there_are_no_links_a_file_names_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 5)  # as a run that was begun where there are links
    monkeypatch.setattr(Path, "symlink_to", no_links)
    for step in (9, 12):
        filled(tmp_path, step)
        assert (tmp_path / "latest").read_text() == step_name(step) and not (tmp_path / "latest").is_symlink()
        assert equal(load_checkpoint(tmp_path / "latest"), example(step)) and equal(load_newest(tmp_path), example(step))
    monkeypatch.undo()
    filled(tmp_path, 15)  # and the other way round
    assert os.readlink(tmp_path / "latest") == step_name(15) and equal(load_checkpoint(tmp_path / "latest"), example(15))


@pytest.mark.parametrize("text", ["", "../other", "/etc", "step-00000099", "\x00"])
def test_a_file_latest_that_names_no_checkpoint_is_one_sentence(tmp_path: Path, text: str) -> None:
    filled(tmp_path, 5)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").write_text(text)
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "latest")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_copy_that_followed_the_link_keeps_no_save_from_being_made(tmp_path: Path) -> None:
    filled(tmp_path / "run", 5)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # `latest` is a folder now
    filled(tmp_path / "copy", 9)
    assert equal(load_checkpoint(tmp_path / "copy/latest"), example(9)) and steps(tmp_path / "copy") == [9, 5]
    kept = list((tmp_path / "copy").glob("copy-of-latest-*"))
    assert len(kept) == 1 and equal(load_checkpoint(kept[0]), example(5))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_folder_has_checkpoints_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert equal(load_newest(filled(tmp_path, 5)), example(5))


def test_a_file_system_without_locks_is_said_and_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*of: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "jepakit"), locked(tmp_path):
        pass
    assert "without locks" in caplog.text


# ---- no more than is needed, and nothing that is no number


@pytest.mark.parametrize("damage", [flip, delete])
def test_of_a_part_no_other_files_tensors_are_looked_at(tmp_path: Path, damage: Damage, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 5)
    damage(tmp_path / step_name(5) / "optimizer.safetensors")
    hashed: list[str] = []
    real = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: hashed.append(path.name) or real(path))
    for found in (load_checkpoint(tmp_path / step_name(5), only=("model",)), load_newest(tmp_path, ("model",))):
        assert equal(Checkpoint(found.tensors, found.state), Checkpoint({"model": example(5).tensors["model"]}, {"step": 5}))
        assert found.tensors.keys() == {"model"}
    assert set(hashed) == {"model.safetensors", "state.json"}
    flip(tmp_path / step_name(5) / "model.safetensors")  # what is read is still verified
    with pytest.raises(UserError, match=r"model\.safetensors has changed"):
        load_checkpoint(tmp_path / step_name(5), only=("model",))


@pytest.mark.parametrize("group", ["model", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_no_number_is_named_and_a_resume_takes_the_one_before(
    tmp_path: Path, group: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 5)
    broken = example(9)
    name = next(iter(broken.tensors[group]))
    broken.tensors[group][name].view(-1)[-1] = value
    assert not_finite(example(9).tensors) == "" and not_finite(broken.tensors) == f"{group} {name}"
    assert save(tmp_path, 9, broken, 10)
    with caplog.at_level(logging.WARNING, "jepakit"):
        assert equal(load_newest(tmp_path, finite=True), example(5))
    assert f"step 9 is no use, falling back to the one before: its {group} {name} is not finite" in caplog.text
    (tmp_path / step_name(5) / MANIFEST).unlink()
    with pytest.raises(UserError, match="2 tried"):
        load_newest(tmp_path, finite=True)
