"""Which rows are segments of a file, and which are events in it."""

import numpy as np
import pytest
from small_tables import (
    CLASSES,
    files,
    write_csv,
    write_files,
    write_table,
)

from efficientat_plugin.data.labelled import runs_of
from efficientat_plugin.data.tables import read_table


@pytest.fixture
def folder(tmp_path):
    """Four short files, in a folder ``audio``."""
    write_files(tmp_path)
    return tmp_path


def test_rows_of_a_file_are_events_in_it(folder, caplog):
    lines = [
        ["audio/a.wav", "0.0", "0.02", "dog"],
        ["audio/a.wav", "0.03", "0.05", "cat"],
        ["audio/b.wav", "0.0", "0.01", "dog"],
        ["audio/a.wav", "0.06", "0.08", "dog"],
        ["audio/c.wav", "", "", ""],
    ]
    header = ["filename", "onset", "offset", "event_label"]
    write_csv(folder / "strong.tsv", header, lines, "\t")
    found = read_table(folder / "strong.tsv")
    assert found["video_id"][:] == ["audio/a", "audio/b", "audio/c"]
    assert found["labels"][:] == [["dog", "cat"], ["dog"], []]
    assert "start" not in found.column_names
    assert "5 rows describe 3 clips. Rows of the same clip are read as" in caplog.text
    assert "The times (onset, offset) are not used" in caplog.text


def test_a_file_on_two_sides_is_refused(folder):
    lines = [["audio/a.wav", "dog", "train"], ["audio\\a.wav", "cat", "test"]]
    write_csv(folder / "clips.csv", ["file", "label", "split"], lines)
    with pytest.raises(
        ValueError, match=r"a.wav in split train and in split test; put"
    ):
        read_table(folder / "clips.csv")


ENDS, LENGTHS = ("0.05", "0.1"), ("0.05", "0.05")
SEGMENTS = [  # names of columns, and what the second has beside 0 and 0.05
    (["start", "end"], ENDS),
    (["Begin Time (s)", "End Time (s)"], ENDS),
    (["t_start", "t_end"], ENDS),
    (["tmin", "tmax"], ENDS),
    (["xmin", "xmax"], ENDS),
    (["Start_Time", "Stop"], ENDS),
    (["offset", "duration"], LENGTHS),
    (["Start", "Duration"], LENGTHS),
    (["start", "end", "duration"], ENDS),
]


@pytest.mark.parametrize(("header", "seconds"), SEGMENTS, ids=str)
def test_times_cut_segments(header, seconds, folder):
    times = [
        (start, end, "9") for start, end in zip(("0", "0.05"), seconds, strict=True)
    ]
    lines = [
        [file, *time[: len(header)], label]
        for file in files()
        for time, label in zip(times, "xy", strict=True)
    ]
    write_csv(folder / "clips.csv", ["file", *header, "label"], lines)
    found = read_table(folder / "clips.csv")
    assert found["start"][:] == [0.0, 0.05] * 4
    assert found["end"][:] == pytest.approx([0.05, 0.1] * 4)
    assert found["labels"][:] == [["x"], ["y"]] * 4
    assert found["video_id"][:2] == ["audio/a:0-0.05", "audio/a:0.05-0.1"]
    whole = read_table(folder / "clips.csv", segments=False)
    assert whole["video_id"][:] == files("audio/{}")
    assert whole["labels"][:] == [["x", "y"]] * 4


@pytest.mark.parametrize("groups", [None, "1234", "1122"])
def test_segments_of_a_file_are_never_on_two_sides(groups, folder):
    lines, header = [], ["file", "start", "end", "label", "group"]
    for place, file in enumerate(files()):
        for n, label in enumerate("xyxy"):
            group = groups[place] if groups and n else ""  # the first is of no group
            lines.append([file, n / 50, (n + 1) / 50, label, group])
    header, cut = (header, 5) if groups else (header[:4], 4)
    write_csv(folder / "clips.csv", header, [line[:cut] for line in lines])
    found = read_table(folder / "clips.csv")
    paths = np.array([audio["path"] for audio in found["audio"]])
    for seed in range(5):
        valid = 0.0 if groups == "1122" else 0.25
        (split,) = runs_of(found, "random", None, valid, 0.25, seed).values()
        sides = [set(paths[rows]) for rows in split if rows]
        assert sum(map(len, sides)) == len(set(paths))
        if groups == "1122":  # files of one group stay together, too
            together = {str(folder / name) for name in files()[:2]}
            assert all(len(side & together) != 1 for side in sides)


def test_segments_of_one_file_alone_are_split_by_a_column_or_not_at_all(folder, caplog):
    lines = [["audio/a.wav", n / 50, (n + 1) / 50, "xyxy"[n]] for n in range(4)]
    write_csv(folder / "clips.csv", ["file", "start", "end", "label"], lines)
    found = read_table(folder / "clips.csv")
    with pytest.raises(ValueError, match="segments of one file, stay together unless"):
        runs_of(found, test_share=0.5)
    assert len(runs_of(found, "random", None, 0.0, 0.0)["random"].train) == 4
    sides = [*zip(lines, ["train", "train", "test", "test"], strict=True)]
    header = ["file", "start", "end", "label", "split"]
    write_csv(folder / "clips.csv", header, [[*line, side] for line, side in sides])
    found = read_table(folder / "clips.csv")
    assert len(runs_of(found, valid_share=0.0)["given"].test) == 2
    assert "1 groups are on several sides of the given split: /" in caplog.text


def test_files_that_are_cut_already_are_read_whole(folder, caplog):
    pairs = zip(files(), CLASSES, strict=True)
    lines = [[f, 60 + n, 64 + n, c] for n, (f, c) in enumerate(pairs)]
    write_csv(folder / "clips.csv", ["file", "start", "end", "label"], lines)
    assert "start" not in read_table(folder / "clips.csv").column_names
    assert "assumed to be segments already and are read whole" in caplog.text


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2", "1"], "row 1 of clips.csv has a segment from 2 to 1 s .* is empty"),
        (["1:30", "1:40"], "has '1:30' in column start, which is not a time"),
        (["-1", "1"], "has '-1' in column start, which is not a time"),
        (["0", "inf"], "has 'inf' in column end, which is not a time"),
    ],
)
def test_times_that_are_none_are_refused(times, message, folder):
    line = [files()[0], *times, "dog"]
    write_csv(folder / "clips.csv", ["file", "start", "end", "label"], [line])
    with pytest.raises(ValueError, match=message):
        read_table(folder / "clips.csv")
    assert len(read_table(folder / "clips.csv", segments=False)) == 1


UNUSED = [  # columns of times, and the reason that is given
    (["start_ms", "end_ms"], "they are not in seconds"),
    (["Start (ms)", "End (ms)"], "they are not in seconds"),
    (["start_frame", "num_frames"], "they are not in seconds"),
    (["offset_ms", "duration_ms"], "they are not in seconds"),
    (["frame_offset", "num_frames"], "they are not in seconds"),
    (["begin_samples", "end_samples"], "they are not in seconds"),
    (["start", "end_ms"], "end_ms is not in seconds"),
    (["Start", "duration_ms"], "duration_ms is not in seconds"),
    (["begin", "num_frames"], "num_frames is not in seconds"),
    (["start"], "no column has ends or durations"),
    (["duration_ms", "num_frames"], None),  # may be about the files
]


@pytest.mark.parametrize(("header", "reason"), UNUSED, ids=str)
def test_times_that_are_not_used_are_named_with_the_reason(
    header, reason, folder, caplog
):
    columns = [files(), CLASSES, [0, 1] * 2, [50, 100] * 2][: 2 + len(header)]
    path = write_table(folder, ["file", "label", *header], columns)
    assert "start" not in read_table(path).column_names
    assert len(caplog.messages) == (reason is not None)
    if reason:
        assert ", ".join(header) in caplog.text and f"because {reason}" in caplog.text
    caplog.clear()
    read_table(path, segments=False)
    assert not caplog.records
