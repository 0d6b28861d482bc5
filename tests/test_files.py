"""Files and folders are written entirely or not at all."""

import os

import pytest

from efficientat_plugin.support.files import atomic_file, atomic_folder


class Full(OSError):
    """Raised in the middle of writing."""


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_file_keeps_its_content_until_the_new_one_is_complete(mode, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    new = "new" if mode == "w" else b"new"
    with pytest.raises(Full), atomic_file(path, mode) as file:
        file.write(new)
        file.flush()
        assert path.read_text() == "old"
        raise Full
    assert os.listdir(tmp_path) == ["a.txt"] and path.read_text() == "old"
    with atomic_file(path, mode) as file:
        file.write(new)
    assert os.listdir(tmp_path) == ["a.txt"] and path.read_text() == "new"


@pytest.mark.parametrize("replace", [False, True])
def test_folder_is_whole_or_as_before(replace, tmp_path):
    folder = tmp_path / "in" / "here"
    for name in ("old", "new"):
        with pytest.raises(Full), atomic_folder(folder, replace) as unfinished:
            (unfinished / name).touch()
            raise Full
        assert os.listdir(folder.parent) == (["here"] if name == "new" else [])
        if name == "old" or replace:
            with atomic_folder(folder, replace) as unfinished:
                (unfinished / name).touch()
        else:
            with pytest.raises(OSError), atomic_folder(folder) as unfinished:
                (unfinished / name).touch()
    assert os.listdir(folder.parent) == ["here"]
    assert os.listdir(folder) == ["new" if replace else "old"]
