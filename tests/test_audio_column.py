"""A file is found, and has one id, however a table names it."""

import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tables import (
    CLASSES,
    LABELS,
    files,
    write_csv,
    write_files,
    write_labelled,
    write_sound,
    write_table,
)

from efficientat_plugin.data.decoding import ClipReader, UnreadableClip
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.summary import describe
from efficientat_plugin.data.tables import label_table, read_table


@pytest.fixture
def folder(tmp_path):
    """Four short files, in a folder ``audio``."""
    write_files(tmp_path)
    return tmp_path


def test_files_that_do_not_exist_are_named_and_unreadable(tmp_path, caplog):
    write_labelled(tmp_path)
    lines = [[f"{name}.wav", label] for name, label in LABELS.items()]
    write_csv(tmp_path / "clips.csv", ["filename", "category"], lines)
    (tmp_path / "b1.wav").unlink()
    found = read_table(tmp_path)
    assert found["video_id"][:] == list(LABELS)
    message = "1 of 6 files of clips.csv do not exist and count as unreadable clips: b1"
    assert message in caplog.text
    assert [clip.clip_id for clip in describe(found).unreadable] == ["b1"]
    reader = ClipReader(label_table(found), 0.1)
    with pytest.raises(UnreadableClip):
        reader.read(found[list(LABELS).index("b1")])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_unicode_forms_are_alike(form, on_disk, tmp_path):
    name, label = "fl\u00fcte.wav", "caf\u00e9"
    write_sound(tmp_path / unicodedata.normalize(on_disk, name))
    write_csv(
        tmp_path / "clips.csv",
        ["file", "label"],
        [[unicodedata.normalize(form, name), unicodedata.normalize(form, label)]],
    )
    found = read_table(tmp_path)
    assert found["labels"][:] == [[label]]
    assert found["video_id"][:] == ["fl\u00fcte"]
    assert found["audio"][0]["path"].endswith(unicodedata.normalize(on_disk, name))
    write_sound(tmp_path / "folders" / unicodedata.normalize(form, label) / name)
    assert read_table(tmp_path / "folders")["labels"][:] == [[label]]
    table = LabelTable(["/m/x"], [unicodedata.normalize(on_disk, label)]).with_names()
    assert table.indices([unicodedata.normalize(form, label)]) == ([0], [])


@pytest.mark.parametrize(
    "pattern",
    [
        "audio/{}.wav",
        "./audio/{}.wav",
        "audio\\{}.wav",
        "C:\\Users\\me\\set\\audio\\{}.wav",
        "/home/somebody/set/audio/{}.wav",
        "audio/{}.flac",
        "audio/{}.WAV",
        "audio/{}",
    ],
)
def test_a_file_has_one_id_however_it_is_named(pattern, folder):
    found = read_table(
        write_table(folder, ["file", "label"], [files(pattern), CLASSES])
    )
    assert found["video_id"][:] == files("audio/{}")
    paths = [audio["path"] for audio in found["audio"]]
    assert paths == [str(folder / name) for name in files()]


def test_a_file_has_one_id_wherever_it_is_named_from(folder):
    path = write_table(folder, ["file", "label"], [files("{}.wav"), CLASSES])
    found = read_table(path, audio_folder="audio")
    assert found["video_id"][:] == files("audio/{}")


def test_files_of_another_format_are_named(folder, caplog):
    columns = [[*files()[:3], "audio/d.mp3"], CLASSES]
    read_table(write_table(folder, ["file", "label"], columns))
    message = "1 files of clips.csv exist in another format than listed: audio/d"
    assert message in caplog.text


HINTS = {
    "x.wav": "set audio_folder=audio, because audio/x.wav exists",
    "audio/x.wav": "set audio_folder=deep/er, because deep/er/audio/x.wav exists",
    "sounds/x.wav": "audio/x.wav exists: write such names in column file",
    "udio/x.wav": "audio/x.wav exists: write such names in column file",
    "other.wav": "pass audio_folder, or another audio_column",
}


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_helps_or_is_not_given(name, tmp_path):
    place = "deep/er/audio/x.wav" if name == "audio/x.wav" else "audio/x.wav"
    write_sound(tmp_path / place)
    write_csv(tmp_path / "clips.csv", ["file", "label"], [[name, "dog"]])
    with pytest.raises(FileNotFoundError, match=HINTS[name]):
        read_table(tmp_path)
    if "set audio_folder=" in HINTS[name]:
        hint = HINTS[name].partition("=")[2].partition(",")[0]
        assert len(read_table(tmp_path, audio_folder=hint)) == 1


@pytest.mark.parametrize("name", ["aa", "audio/aa", "/nowhere/audio"])
def test_a_folder_of_audio_that_is_not_there_is_refused(folder, name):
    path = write_table(folder, ["file", "label"], [files(), CLASSES])
    with pytest.raises(FileNotFoundError, match=f"no folder {name} .*audio_folder"):
        read_table(path, audio_folder=name)


def test_a_file_in_several_folders_is_named(tmp_path, caplog):
    for name in ("x/a.wav", "y/a.wav"):
        write_sound(tmp_path / name)
    write_csv(tmp_path / "clips.csv", ["file", "label"], [["a.wav", "dog"]])
    with pytest.raises(FileNotFoundError, match=r"=x, because x/a.wav .*and y/a.wav"):
        read_table(tmp_path)
    (tmp_path / "clips.csv").rename(tmp_path / "x" / "clips.csv")
    assert not caplog.records and len(read_table(tmp_path)) == 1
    assert not caplog.records
    write_sound(tmp_path / "a.wav")
    assert read_table(tmp_path)["audio"][0]["path"] == str(tmp_path / "a.wav")
    assert "those in the first of these are used: a.wav" in caplog.text
    caplog.clear()
    read_table(tmp_path, audio_folder="y")
    assert not caplog.records


NAMED_LIKE_YOUTUBE = (
    "kitchen_mic_0",
    "kitchen_mic_1",
    "Yellowhammer_1",
    "Y--PJHxphWEs",
)


@pytest.mark.parametrize("named", [NAMED_LIKE_YOUTUBE, ["Yellowhammer_1"]])
def test_every_reader_gives_a_file_the_same_id(named, tmp_path):
    names = sorted(f"{c}/{name}" for c in ("cat", "dog") for name in named)
    if len(named) > 1:  # some would be alike without their ends
        names = sorted([*names, "dog/caf\u00e9", "dog/twice.flac", "dog/twice.wav"])
    for name in names:
        suffix = "" if "." in name else ".wav"
        write_sound(tmp_path / unicodedata.normalize("NFD", name + suffix))
    lines = [[name, name[:3]] for name in names]
    (tmp_path / "tables").mkdir()
    write_csv(tmp_path / "tables" / "clips.csv", ["file", "label"], lines)
    found = {
        "class folders": read_table(tmp_path, form="class_folders"),
        "sounds": read_table(tmp_path, form="sounds"),
        "table": read_table(tmp_path),
        "no labels": load_rows(str(tmp_path), None),
    }
    for form, rows in found.items():
        assert sorted(rows["video_id"]) == names, form


@pytest.mark.parametrize("is_embedded", [False, True])
def test_a_table_without_labels_is_read_where_none_are_needed(tmp_path, is_embedded):
    write_sound(tmp_path / "a.wav")
    write_sound(tmp_path / "b.wav")
    path = tmp_path / "clips.csv"
    write_csv(path, ["file"], [["a.wav"], ["b.wav"]])
    if is_embedded:
        path = tmp_path / "clips.parquet"
        content = {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}
        pq.write_table(pa.table({"audio": [content, content]}), path)
    rows = read_table(path, form="sounds")
    assert rows["labels"][:] == [[], []]
    with pytest.raises(ValueError, match="label_column"):
        read_table(path)


def test_ids_of_audioset_are_those_of_youtube(tmp_path):
    write_sound(tmp_path / "Y--PJHxphWEs_30000.wav")
    assert load_rows(str(tmp_path), None)["video_id"][:] == ["Y--PJHxphWEs_30000"]
    (tmp_path / "eval_segments.csv").write_text("--PJHxphWEs, 30, 40, /m/09x0r\n")
    assert load_rows(str(tmp_path), None)["video_id"][:] == ["--PJHxphWEs"]


def test_ids_that_are_not_used_are_reported(folder, caplog):
    path = write_table(
        folder, ["file", "label", "clip_id"], [files(), CLASSES, list("xxyz")]
    )
    assert read_table(path)["video_id"][:] == files("audio/{}")
    assert "clip_id" in caplog.text and "x (2)" in caplog.text


def test_clips_alike_but_for_their_suffix_keep_it(tmp_path):
    for suffix in ("wav", "flac"):
        write_sound(tmp_path / "dog" / f"a1.{suffix}", "a1")
    assert read_table(tmp_path)["video_id"][:] == ["dog/a1.flac", "dog/a1.wav"]
