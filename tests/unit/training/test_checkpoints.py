"""Checkpoints: durable, checked, pruned, and only of their own run; and the key in their folder."""

import os
import shutil
import stat

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.training import checkpoints
from sealed_experts.training.checkpoints import CheckpointFolder, key_id, load_state, save_state, state_digest


def folder(tmp_path, *, fingerprint="f" * 64, keep=2):
    return CheckpointFolder(tmp_path, fingerprint=fingerprint, keep=keep)


def state(value):
    return {"model_state_dict": {"a": torch.full((50,), float(value))}, "step": value, "history": [{"loss": None}]}


def test_the_newest_ones_are_kept_and_the_newest_is_loaded(tmp_path):
    subject = folder(tmp_path)
    for step in (5, 9, 10, 100):
        subject.save(state(step), step=step)
    assert sorted(path.name for path in subject.path.iterdir()) == ["checkpoint_step_10.pt", "checkpoint_step_100.pt"]
    assert subject.load_newest()["step"] == 100


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_newest_checkpoint_is_said_loudly_and_the_older_one_used(tmp_path, capsys, damage):
    subject = folder(tmp_path)
    subject.save(state(1), step=1)
    newest = subject.save(state(2), step=2)
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[content.index(torch.full((50,), 2.0).numpy().tobytes()) + 7] ^= 1
    replacement = {"truncate": content[: len(content) // 2], "flip": content, "empty": b"", "foreign": b"GIF89a"}
    newest.write_bytes(bytes(replacement[damage]))
    assert subject.load_newest()["step"] == 1
    assert "WARNING: checkpoint of step 2 is not usable" in capsys.readouterr().err
    folder(tmp_path, keep=1).save(state(1), step=1)
    assert folder(tmp_path).load_newest()["step"] == 1  # pruning did not treat the damaged checkpoint as the newest


def test_when_none_loads_the_run_is_not_silently_started_again(tmp_path):
    subject = folder(tmp_path)
    subject.save(state(1), step=1).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        subject.load_newest()


def test_another_runs_checkpoint_is_not_used(tmp_path):
    theirs = folder(tmp_path, fingerprint="a" * 64).save(state(3), step=3)
    ours = folder(tmp_path)
    assert ours.load_newest() is None
    (ours.path / theirs.name).write_bytes(theirs.read_bytes())
    with pytest.raises(UserError, match="none of the 1"):
        ours.load_newest()


def test_no_temporary_file_stays_and_a_failed_write_keeps_the_old_one(tmp_path, monkeypatch):
    subject = folder(tmp_path)
    subject.save(state(1), step=1)
    (subject.path / ".checkpoint_step_1.pt.x.tmp").write_bytes(b"left by a kill")
    subject = folder(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="no space left"):
        subject.save(state(1), step=1)
    monkeypatch.undo()
    assert [path.name for path in subject.path.iterdir()] == ["checkpoint_step_1.pt"]
    assert subject.load_newest()["step"] == 1


def test_the_key_is_secret_random_and_kept(tmp_path):
    one, two = folder(tmp_path), folder(tmp_path, fingerprint="b" * 64)
    assert one.secret_key() == one.secret_key() != two.secret_key()
    assert stat.S_IMODE(os.stat(one.path / "key").st_mode) == 0o600
    assert one.secret_key().hex() not in key_id(one.secret_key())


def test_a_key_that_others_can_read_is_refused(tmp_path):
    subject = folder(tmp_path)
    subject.secret_key()
    (subject.path / "key").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        subject.secret_key()


def test_a_lost_key_is_never_replaced_by_another_under_the_same_run(tmp_path):
    subject = folder(tmp_path)
    subject.secret_key()
    subject.save(state(1), step=1)
    (subject.path / "key").unlink()
    with pytest.raises(UserError, match="restore the key"):
        subject.secret_key()


def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/boom",))

    torch.save({"digest": "", "x": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match="damaged or not a file of this program"):
        load_state(tmp_path / "bomb.pt")
    assert not (tmp_path / "boom").exists()


def test_the_digest_covers_names_types_shapes_and_bytes():
    base = {"a": torch.zeros(4), "b": [1, None, "x"]}
    variants = [
        {"a": torch.zeros(2, 2), "b": [1, None, "x"]},
        {"a": torch.zeros(4, dtype=torch.int32), "b": [1, None, "x"]},
        {"c": torch.zeros(4), "b": [1, None, "x"]},
        {"a": torch.zeros(4), "b": [1, None, "y"]},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0]), "b": [1, None, "x"]},
    ]
    assert len({state_digest(value) for value in [base, *variants]}) == 6
    assert state_digest(base) == state_digest({"b": [1, None, "x"], "a": torch.zeros(4)})


def test_bfloat16_survives(tmp_path):
    save_state({"x": torch.randn(3).to(torch.bfloat16)}, tmp_path / "x.pt")
    assert load_state(tmp_path / "x.pt")["x"].dtype == torch.bfloat16


@pytest.mark.parametrize("made_anew", [False, True], ids=["gone", "made anew"])
def test_a_stopped_run_saves_nothing_into_the_folder_of_the_run_that_replaced_it(tmp_path, made_anew):
    """The folder was removed, and another run with another key has begun in a folder of the same name."""
    stopped = folder(tmp_path)
    stopped.save(state(1), step=1)
    shutil.rmtree(stopped.path)
    other = folder(tmp_path) if made_anew else None
    with pytest.raises(UserError, match="was removed while this run was using it"):
        stopped.save(state(2), step=2)
    if other is None:
        assert not stopped.path.exists()
    else:
        other.save(state(3), step=3)
        assert [path.name for path in stopped.path.iterdir()] == ["checkpoint_step_3.pt"]


def test_a_folder_that_is_replaced_while_a_state_is_written_does_not_get_it(tmp_path, monkeypatch):
    subject = folder(tmp_path)
    digest = checkpoints.state_digest

    def replaced(value):
        shutil.rmtree(subject.path)
        subject.path.mkdir()
        return digest(value)

    monkeypatch.setattr(checkpoints, "state_digest", replaced)
    with pytest.raises(UserError, match="another one is in its place"):
        subject.save(state(1), step=1)
    assert list(subject.path.iterdir()) == []


def test_a_folder_that_is_moved_away_and_put_back_is_the_same(tmp_path):
    subject = folder(tmp_path)
    subject.path.rename(tmp_path / "away")
    with pytest.raises(UserError, match="put it back"):
        subject.save(state(1), step=1)
    (tmp_path / "away").rename(subject.path)
    assert subject.save(state(1), step=1).exists()


@pytest.mark.parametrize(
    "value",
    [float("nan"), b"x", 2**60, 1j, {1, 2}, torch.eye(3).to_sparse(), torch.empty(3, device="meta"), {1: 2, (1, 2): 3}],
    ids=["nan", "bytes", "big", "complex", "set", "sparse", "meta", "keys"],
)
def test_a_foreign_file_that_carries_a_digest_is_set_aside_as_any_damaged_one(tmp_path, capsys, value):
    """A bug: values that our states never hold stopped the run, or gave a traceback."""
    subject = folder(tmp_path)
    subject.save(state(1), step=1)
    torch.save({"digest": "x", "value": value}, subject.path / "checkpoint_step_2.pt")
    assert subject.load_newest()["step"] == 1
    assert "WARNING: checkpoint of step 2 is not usable" in capsys.readouterr().err
    assert (subject.path / "checkpoint_step_2.unusable").exists()


def test_too_little_memory_for_a_digest_damages_no_file(tmp_path, monkeypatch):
    subject = folder(tmp_path)
    subject.save(state(1), step=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "state_digest", lambda _: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            subject.load_newest()
    assert subject.load_newest()["step"] == 1
