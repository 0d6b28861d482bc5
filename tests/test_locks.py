"""Who else is at work is noticed, and forgotten when they end."""

import errno
import os
import signal
import time

import pytest
from at_once import hold, start

from efficientat_plugin.support import locks
from efficientat_plugin.support.launch import occupy_folder
from efficientat_plugin.support.locks import FolderLock, lock
from efficientat_plugin.teachers.store.writer import StoreWriter

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="this system has no locks")
ABOUT = {"teacher": "t", "labels_sha256": "0" * 64, "num_classes": 2}
ABOUT |= {"sample_rate": 32000, "clip_seconds": 1.0}


def test_run_whose_folder_another_run_is_at_work_in_is_refused(tmp_path):
    sign = tmp_path / "worker"
    process = start(hold, tmp_path, sign)
    while not sign.exists():
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another run is using .*--output_folder"):
        occupy_folder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # Its worker, as that of a loader, takes seconds to notice.
    occupy_folder(tmp_path)
    occupy_folder(tmp_path)  # it has it already
    os.kill(int(sign.read_text()), signal.SIGKILL)


def test_folder_lock_that_is_refused_leaves_nothing_open(tmp_path):
    held = FolderLock(tmp_path)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)
    held.release()


def test_file_systems_without_locks_are_written_all_the_same(tmp_path, monkeypatch):
    def has_none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", has_none)
    with StoreWriter(tmp_path / "store", **ABOUT) as writer:
        writer.append(["a"], [[0.0, 1.0]])
    with open(tmp_path / "file", "wb") as file:
        assert not lock(file) and not lock(file, wait=True)
    FolderLock(tmp_path).release()


def test_other_faults_are_none_of_a_lock(tmp_path):
    with pytest.raises(OSError) as error:
        lock(10**6)
    assert error.value.errno == errno.EBADF
