"""A checkpoint is there entirely or not at all, whenever the process dies."""

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from efficientat_plugin.support import checkpoints
from efficientat_plugin.support.checkpoints import AtomicCheckpointer

RECOVERABLES = ("student", "average")


class _Killed(BaseException):
    """As a kill, nobody catches it."""


def _checkpointer(folder):
    modules = {name: torch.nn.Linear(8, 1, bias=False) for name in RECOVERABLES}
    return AtomicCheckpointer(folder, modules)


def _fill(checkpointer, value):
    for module in checkpointer.recoverables.values():
        torch.nn.init.constant_(module.weight, value)


def _save(checkpointer, value, **meta):
    _fill(checkpointer, value)
    return checkpointer.save_checkpoint(meta={"value": value, **meta})


def _values(checkpointer):
    return [found.meta["value"] for found in checkpointer.list_checkpoints()]


def _assert_holds(checkpointer, value):
    for module in checkpointer.recoverables.values():
        assert torch.equal(module.weight, torch.full_like(module.weight, value))


def test_what_is_saved_is_recovered(tmp_path):
    checkpointer = _checkpointer(tmp_path)
    saved = _save(checkpointer, 1.0, epoch=3)
    assert saved.path.parent == tmp_path and saved.path.name.startswith("CKPT")
    assert all(path.is_file() for path in saved.paramfiles.values())
    assert set(saved.paramfiles) == set(RECOVERABLES)
    _save(checkpointer, 2.0)

    restarted = _checkpointer(tmp_path)
    assert _values(restarted) == [1.0, 2.0]
    assert restarted.recover_if_possible().meta["value"] == 2.0
    _assert_holds(restarted, 2.0)
    restarted.load_checkpoint(saved)
    _assert_holds(restarted, 1.0)
    assert saved.meta["epoch"] == 3


def test_a_named_checkpoint_is_replaced(tmp_path):
    checkpointer = _checkpointer(tmp_path)
    for value in (1.0, 2.0):
        _fill(checkpointer, value)
        checkpointer.save_checkpoint(meta={"value": value}, name="best")
    assert [path.name for path in tmp_path.iterdir()] == ["CKPT+best"]
    _fill(checkpointer, 0.0)
    checkpointer.recover_if_possible()
    _assert_holds(checkpointer, 2.0)


def _killed(*_args):
    raise _Killed


def _die_saving(checkpointer, monkeypatch):
    def save_half(module, path):
        torch.save(module.state_dict(), path)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        raise _Killed

    checkpointer.custom_save_hooks["average"] = save_half


def _die_flushing(checkpointer, monkeypatch):
    monkeypatch.setattr(checkpoints, "to_disk", _killed)


def _die_renaming(checkpointer, monkeypatch):
    monkeypatch.setattr(checkpoints.os, "replace", _killed)


@pytest.mark.parametrize("die", [_die_saving, _die_flushing, _die_renaming])
def test_a_save_cut_short_leaves_the_checkpoint_before(
    die, tmp_path, monkeypatch, caplog
):
    checkpointer = _checkpointer(tmp_path)
    before = _save(checkpointer, 1.0)
    with monkeypatch.context() as dying, pytest.raises(_Killed):
        die(checkpointer, dying)
        _save(checkpointer, 2.0)
    assert len(list(tmp_path.iterdir())) == 2  # something was left
    assert list(tmp_path.glob("CKPT*")) == [before.path]

    restarted = _checkpointer(tmp_path)
    assert restarted.recover_if_possible().path == before.path
    _assert_holds(restarted, 1.0)
    after = _save(restarted, 3.0)
    assert set(tmp_path.iterdir()) == {before.path, after.path}
    assert "which a killed run left unfinished" in caplog.text


def _cut(content):
    return content[: len(content) // 2]


def _empty(content):
    return b""


def _remove(content):
    return None


def _flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [_cut, _empty, _flip, _remove])
@pytest.mark.parametrize(
    "name", ["CKPT.yaml", "contents.json", "student.ckpt", "average.ckpt"]
)
def test_a_damaged_checkpoint_is_named_and_set_aside(name, damage, tmp_path, caplog):
    before = _checkpointer(tmp_path)
    for value, score in ((1.0, 0.1), (2.0, 0.3), (3.0, 0.2)):
        newest = _save(before, value, mAP=score).path
    file = newest / name
    damaged = damage(file.read_bytes())
    file.unlink() if damaged is None else file.write_bytes(damaged)

    checkpointer = _checkpointer(tmp_path)
    assert checkpointer.recover_if_possible().meta["value"] == 2.0
    _assert_holds(checkpointer, 2.0)
    assert f"Skipping {newest}" in caplog.text
    assert newest.is_dir()  # who only evaluates moves nothing
    _save(checkpointer, 4.0)
    [aside] = tmp_path.glob("DAMAGED*")
    assert len(list(aside.iterdir())) == 4 - (damaged is None)
    assert _values(checkpointer) == [1.0, 2.0, 4.0]
    assert checkpointer.recover_if_possible(max_key="mAP").meta["value"] == 2.0


def test_training_does_not_start_over_if_every_checkpoint_is_corrupt(tmp_path):
    for value in (1.0, 2.0):
        saved = _save(_checkpointer(tmp_path), value).path
        (saved / "student.ckpt").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match="every checkpoint in .* is corrupt"):
            _checkpointer(tmp_path).recover_if_possible()


def test_a_checkpoint_of_another_model_is_refused_in_a_sentence(tmp_path):
    _save(_checkpointer(tmp_path), 1.0)
    modules = {name: torch.nn.Linear(4, 1, bias=False) for name in RECOVERABLES}
    with pytest.raises(ValueError, match="belongs to another model .size mismatch for"):
        AtomicCheckpointer(tmp_path, modules).recover_if_possible()


def test_of_equally_good_checkpoints_the_oldest_is_found(tmp_path):
    checkpointer = _checkpointer(tmp_path)
    for value, score in enumerate([0.1, 0.5, 0.5, 0.5, 0.1]):
        _save(checkpointer, float(value), mAP=score, loss=score, unixtime=value)
    _save(checkpointer, 9.0, unixtime=9)  # without any score
    assert checkpointer.find_checkpoint(max_key="mAP").meta["value"] == 1
    assert checkpointer.find_checkpoint(min_key="loss").meta["value"] == 0
    assert checkpointer.find_checkpoint().meta["value"] == 9
    found = checkpointer.find_checkpoints(max_key="mAP", max_num_checkpoints=4)
    assert [checkpoint.meta["value"] for checkpoint in found] == [1, 2, 3, 0]
    checkpointer.recover_if_possible(max_key="mAP")
    _assert_holds(checkpointer, 1.0)


def test_the_oldest_of_the_best_and_the_newest_are_kept(tmp_path):
    checkpointer = _checkpointer(tmp_path)
    for value, score in enumerate([0.1, 0.5, 0.5, 0.2]):
        _fill(checkpointer, value)
        checkpointer.save_and_keep_only(
            meta={"value": value, "mAP": score, "unixtime": value}, max_keys=["mAP"]
        )
    assert _values(checkpointer) == [1, 3]


def test_the_tenth_save_reads_no_more_than_the_second(tmp_path, monkeypatch):
    checkpointer, reads = _checkpointer(tmp_path), []
    listed = AtomicCheckpointer.list_checkpoints

    def list_checkpoints(self):
        reads[-1] += 1
        return listed(self)

    monkeypatch.setattr(AtomicCheckpointer, "list_checkpoints", list_checkpoints)
    for value in range(10):
        reads.append(0)
        checkpointer.save_and_keep_only(meta={"mAP": value}, max_keys=["mAP"])
    assert reads[1] == reads[9] > 0


def test_the_newest_is_the_last_by_name_and_by_recency(tmp_path):
    checkpointer = _checkpointer(tmp_path)
    for value in range(20):
        _fill(checkpointer, value)
        checkpointer.save_and_keep_only(meta={"value": value})
        (only,) = checkpointer.list_checkpoints()
        assert only.meta["value"] == value
        saved = checkpointer.save_checkpoint(meta={"value": value + 0.5}).path
        assert saved == max(tmp_path.glob("CKPT*"))
        assert checkpointer.find_checkpoint().path == saved


# --- Real kills -----------------------------------------------------------------


def _large_checkpointer(folder):
    # A save takes a while, so that kills fall into it.
    modules = {name: torch.nn.Linear(1000, 200, bias=False) for name in RECOVERABLES}
    return AtomicCheckpointer(folder, modules)


def _save_for_ever(folder):
    torch.set_num_threads(1)  # threads of the parent are not in a forked process
    checkpointer = _large_checkpointer(folder)
    last = checkpointer.recover_if_possible()
    step = 0 if last is None else last.meta["step"]
    while True:
        step += 1
        _fill(checkpointer, step)
        checkpointer.save_and_keep_only(meta={"step": step})


def test_what_is_listed_after_a_kill_loads(tmp_path):
    moments = random.Random(0)
    last_step = 0
    for _ in range(6):
        child = multiprocessing.get_context("fork").Process(
            target=_save_for_ever, args=(tmp_path,)
        )
        before = set(tmp_path.glob("CKPT*"))
        child.start()
        deadline = time.monotonic() + 60
        while set(tmp_path.glob("CKPT*")) <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.05, 0.3))
        child.kill()
        child.join()
        assert child.exitcode == -9  # it saved until then

        checkpointer = _large_checkpointer(tmp_path)
        listed = checkpointer.list_checkpoints()
        assert listed
        for checkpoint in listed:
            checkpointer.load_checkpoint(checkpoint)
            _assert_holds(checkpointer, checkpoint.meta["step"])
        newest = checkpointer.find_checkpoint().meta["step"]
        assert newest >= last_step  # nothing that was there is lost
        last_step = newest
    assert last_step > 5  # each of the six saved


def test_a_removal_cut_short_leaves_nothing_that_looks_damaged(
    tmp_path, monkeypatch, caplog
):
    checkpointer = _checkpointer(tmp_path)
    kept = [_save(checkpointer, float(value)) for value in range(2)][1]

    def remove_a_file(folder):
        next(Path(folder).iterdir()).unlink()
        raise _Killed

    with monkeypatch.context() as dying, pytest.raises(_Killed):
        dying.setattr(shutil, "rmtree", remove_a_file)
        checkpointer.delete_checkpoints()
    assert list(tmp_path.glob("CKPT*")) == [kept.path]
    restarted = _checkpointer(tmp_path)
    assert restarted.recover_if_possible().path == kept.path
    assert "Skipping" not in caplog.text
    after = _save(restarted, 3.0)
    assert set(tmp_path.iterdir()) == {kept.path, after.path}


@pytest.mark.parametrize("cut", [1, 2])
def test_a_named_checkpoint_that_is_replaced_is_there_all_the_time(
    cut, tmp_path, monkeypatch
):
    checkpointer, renames = _checkpointer(tmp_path), []
    rename = os.replace

    def rename_or_die(source, target):
        renames.append(target)
        if len(renames) > cut:
            raise _Killed
        rename(source, target)

    _fill(checkpointer, 1.0)
    checkpointer.save_checkpoint(meta={"value": 1.0}, name="best")
    _fill(checkpointer, 2.0)
    with monkeypatch.context() as dying, pytest.raises(_Killed):
        dying.setattr(os, "replace", rename_or_die)
        checkpointer.save_checkpoint(meta={"value": 2.0}, name="best")
    restarted = _checkpointer(tmp_path)
    _fill(restarted, 0.0)
    restarted.recover_if_possible(max_key="value")
    _assert_holds(restarted, float(cut))
