"""The summary of a data set, by its labels and the headers of its sound."""

import numpy as np
import pytest
import soundfile
from small_tables import LABELS, write_sound

from efficientat_plugin.data.summary import describe
from efficientat_plugin.data.tables import read_table


def test_a_summary_counts_what_the_headers_hold(tmp_path):
    for seconds, rate, channels, name in (
        (0.5, 16000, 1, "dog/a"),
        (1.0, 32000, 2, "dog/b"),
        (3.0, 32000, 1, "cat/c"),
    ):
        path = tmp_path / f"{name}.flac"
        path.parent.mkdir(exist_ok=True)
        silence = np.zeros((int(seconds * rate), channels))
        soundfile.write(path, silence, rate)
    (tmp_path / "cat" / "d.wav").write_text("a text by the name of a sound")
    summary = describe(read_table(tmp_path))
    assert summary.class_counts == {"cat": 2, "dog": 2}
    assert summary.seconds == (0.5, 1.0, 3.0)
    assert summary.hours == pytest.approx(4.5 / 3600)
    assert summary.sample_rates == {32000: 2, 16000: 1}
    assert summary.channels == {1: 2, 2: 1}
    assert summary.num_unreadable == 1 and summary.headers_read == 4
    assert summary.unreadable[0].clip_id == "cat/d"
    assert "1 of 4 clips could not be opened: cat/d (not decodable: " in str(summary)
    assert "headers were read" not in str(summary)
    assert "are longer than" not in str(summary)


def test_a_summary_counts_what_is_used_of_long_clips(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.01), ("c", 4.0), ("d", 8.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(round(seconds * 4000)), 4000)
    found = read_table(tmp_path, form="sounds")
    summary = describe(found, clip_seconds=2.0)
    assert summary.num_longer == 2  # 2.01 s are not reported
    assert summary.hours_used == pytest.approx(7 / 3600)
    lines = str(summary).splitlines()
    assert lines[0] == "4 clips, without labels"
    assert lines[-1] == (
        "2 clips are longer than 2 s; only their first 2 s are used (0.00 of 0.00 "
        "hours)"
    )
    few = describe(found, max_headers=2, clip_seconds=2.0)
    assert "about 2 clips are longer than 2 s; only" in str(few)
    assert describe(found).hours_used == pytest.approx(15.01 / 3600)


def test_a_summary_of_many_clips_reads_some_headers(tmp_path):
    for name, label in LABELS.items():
        write_sound(tmp_path / label / f"{name}.wav", name)
    found = read_table(tmp_path)
    summary = describe(found, max_headers=2)
    assert summary.headers_read == 2 and summary.num_clips == 6
    assert summary.hours == pytest.approx(6 * 0.1 / 3600)
    assert "2 of 6 sound headers were read" in str(summary)
    assert str(summary).startswith(
        "6 clips of 3 classes: 1 (cow) to 3 (dog) clips each"
    )
    with pytest.raises(ValueError, match="6 rows and max_headers=0: both must be 1"):
        describe(found, max_headers=0)
