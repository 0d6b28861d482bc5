"""A folder has one writer at a time; the lock of a process ends with it."""

import errno
import os
import signal
import time

import filelock._unix
import pytest
from simultaneous import hold, start

from efficientat_plugin.support.launch import occupy_folder
from efficientat_plugin.support.locks import lock, lock_folder
from efficientat_plugin.teachers.store.writer import StoreWriter

ABOUT = {"teacher": "t", "labels_sha256": "0" * 64, "num_classes": 2}
ABOUT |= {"sample_rate": 32000, "clip_seconds": 1.0}


def test_run_in_the_folder_of_another_run_is_refused(tmp_path):
    sign = tmp_path / "worker"
    process = start(hold, tmp_path, sign)
    while not sign.exists():
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another process is .*--output_folder"):
        occupy_folder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # Its worker, like that of a loader, takes seconds to notice.
    occupy_folder(tmp_path)
    occupy_folder(tmp_path)  # this process has it already
    os.kill(int(sign.read_text()), signal.SIGKILL)


def test_file_systems_without_locks_are_written_all_the_same(tmp_path, monkeypatch):
    def has_none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock._unix.fcntl, "flock", has_none)
    with StoreWriter(tmp_path / "store", **ABOUT) as writer:
        writer.append(["a"], [[0.0, 1.0]])
    with open(tmp_path / "file", "wb") as file:
        assert not lock(file) and not lock(file, wait=True)
    lock_folder(tmp_path, "").release()
