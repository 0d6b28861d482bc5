"""Every way into a folder finds the same sounds, and reports what it skips."""

import os

import numpy as np
import pytest
import soundfile

from efficientat_plugin.cli.inputs import Failures, find_sounds
from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES, is_audio
from efficientat_plugin.data.folders import walk_sounds
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.tables import read_table


def write_sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).normal(0, 0.1, 800)
    with open(path, "wb") as file:
        soundfile.write(file, samples, 8000, format="WAV")


def by_command(folder):
    return [os.path.relpath(path, folder) for path in find_sounds([folder], Failures())]


def by_rows(folder):
    audio = load_rows(str(folder), None)["audio"][:]
    return [os.path.relpath(each["path"], folder) for each in audio]


def by_table(folder, form="sounds"):
    audio = read_table(folder, form=form)["audio"][:]
    return [os.path.relpath(each["path"], folder) for each in audio]


def by_classes(folder):
    return by_table(folder, "class_folders")


WAYS = [by_command, by_rows, by_table, by_classes]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "sounds"
    for name in ("dog/a.wav", "dog/deep/b.WAV", "cat/c.wav", "cat-x/d.wav"):
        write_sound(folder / name)
    for name in ("dog/._a.mp3", ".Trash-1000/t.wav", "@eaDir/e.wav", "cat/.f/g.wav"):
        write_sound(folder / name)
    (folder / "notes.txt").touch()
    (folder / "cat" / ".DS_Store").touch()
    write_sound(tmp_path / "elsewhere" / "h.wav")
    os.symlink(tmp_path / "elsewhere", folder / "cat" / "linked")
    os.symlink(folder, folder / "cat" / "loop")
    os.symlink("../dog", folder / "cat" / "another_name")
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_every_way_finds_and_reports_the_same(way, folder, caplog):
    caplog.set_level("INFO")
    expected = ["cat/c.wav", "cat/linked/h.wav", "cat-x/d.wav", "dog/a.wav"]
    assert way(folder) == [*expected, "dog/deep/b.WAV"]
    assert "1 file that is no sound: .txt (1); 4 hidden files" in caplog.text


@pytest.mark.parametrize("way", WAYS)
def test_every_way_names_a_sound_that_no_table_can_hold(way, folder, caplog, capsys):
    try:
        os.rename(folder / "dog" / "a.wav", os.fsencode(folder / "dog") + b"/\xe9.wav")
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    failures = Failures()
    if way is by_command:
        assert len(find_sounds([folder], failures)) == 4
        failures.conclude(num_read=4)
    else:
        assert len(way(folder)) == 4
    reported = caplog.text + capsys.readouterr().err
    assert (
        r"dog/\udce9.wav" in reported
        and "not UTF-8" in reported
        and "rename" in reported
    )


def test_files_that_people_have_are_sounds():
    named = ".wav .WAV .flac .ogg .oga .opus .mp3 .aif .aiff .au .caf .w64"
    named += " .m4a .mp4 .aac .webm .mka .mkv .wma"  # read with PyAV
    assert all(is_audio(f"a{suffix}") for suffix in named.split())
    assert not any(map(is_audio, ("a.txt", "a.csv", "wav", "a.wav.txt")))


@pytest.mark.parametrize("way", WAYS)
def test_every_suffix_is_seen_in_every_way(way, tmp_path):
    names = sorted(f"dog/a{suffix}" for suffix in AUDIO_SUFFIXES)
    for name in names:
        write_sound(tmp_path / name)
    assert sorted(way(tmp_path)) == names


def test_kinds_of_files_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("a.txt", "b.TXT", "c.csv", "README"):
        (tmp_path / name).touch()
    assert walk_sounds(tmp_path) == []
    kinds = "4 files that are no sound: .txt (2), .csv (1), README (1)"
    assert caplog.messages == [f"{tmp_path}: skipped {kinds}"]


def test_a_folder_that_cannot_be_read_is_refused_or_given_to_the_caller(tmp_path):
    nowhere, faults = tmp_path / "nowhere", []
    with pytest.raises(PermissionError, match="nowhere cannot be read .*make it"):
        walk_sounds(nowhere)
    assert walk_sounds(nowhere, lambda *fault: faults.append(fault)) == []
    assert faults == [(nowhere, "No such file or directory")]
