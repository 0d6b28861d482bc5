"""A transfer set: reproducible mixes that read like any other data set."""

import datasets
import numpy as np
import pytest

from efficientat_plugin.data import parquet, transfer
from efficientat_plugin.data.decoding import ClipReader, UnreadableClip
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.parquet import audioset_row
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.transfer import write_transfer_set

READER = ClipReader(LabelTable(["/m/a"], ["A"]), clip_seconds=0.5)


def _row(number, waveform=None):
    if waveform is None:
        waveform = 0.1 * np.random.default_rng(number).standard_normal(16000)
    return audioset_row(f"clip-{number}", waveform, READER.sample_rate, ["/m/a"])


@pytest.fixture(scope="module")
def rows():
    return datasets.Dataset.from_list([_row(number) for number in range(4)])


def _clips(folder):
    rows = load_rows(str(folder), "transfer")
    return {row["video_id"]: READER.read(row) for row in rows}


def test_mixes_are_unlabelled_clips_of_the_right_length_and_level(rows, tmp_path):
    folder = write_transfer_set(rows, READER, tmp_path / "deep" / "set", num_clips=20)
    assert folder == tmp_path / "deep" / "set"
    clips = _clips(folder)
    assert list(clips) == [f"mix-0-{number:06d}" for number in range(20)]
    for row, clip in zip(
        load_rows(str(folder), "transfer"), clips.values(), strict=True
    ):
        assert row["labels"] == [] and clip.labelled == 0
        assert clip.waveform.shape == (16000,)
        peak_db = 20 * clip.waveform.abs().max().log10()
        assert -18.1 < peak_db < -0.9
    waveforms = {clip.waveform.numpy().tobytes() for clip in clips.values()}
    assert len(waveforms) == 20
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_a_mix_is_a_function_of_seed_and_number(rows, tmp_path):
    long = _clips(write_transfer_set(rows, READER, tmp_path / "long", 5, seed=1))
    short = _clips(write_transfer_set(rows, READER, tmp_path / "short", 2, seed=1))
    other = _clips(write_transfer_set(rows, READER, tmp_path / "other", 2, seed=2))
    assert list(short) == list(long)[:2] and not set(other) & set(long)
    for clip_id, clip in short.items():
        assert np.array_equal(clip.waveform, long[clip_id].waveform)
        number = clip_id[-6:]
        assert not np.array_equal(clip.waveform, other[f"mix-2-{number}"].waveform)


def test_a_mix_of_one_source_is_that_source_shifted(rows, tmp_path):
    folder = write_transfer_set(rows, READER, tmp_path / "set", 4, max_sources=1)
    sources = [np.fft.rfft(READER.read(row).waveform.numpy()) for row in rows]
    for clip in _clips(folder).values():
        mixed = np.fft.rfft(clip.waveform.numpy())
        # Circular correlation finds one source at one shift, and no other.
        likeness = [
            np.fft.irfft(mixed * source.conj()).max()
            / (
                np.linalg.norm(np.fft.irfft(mixed))
                * np.linalg.norm(np.fft.irfft(source))
            )
            for source in sources
        ]
        assert max(likeness) > 0.999 and sorted(likeness)[-2] < 0.2


def test_unreadable_sources_are_left_out(tmp_path):
    damaged = _row(1) | {"audio": {"bytes": b"?", "path": None}}
    rows = datasets.Dataset.from_list([_row(0), damaged])
    clips = _clips(write_transfer_set(rows, READER, tmp_path / "set", num_clips=6))
    assert len(clips) == 6
    assert all(clip.waveform.any() for clip in clips.values())


@pytest.mark.parametrize("content", ["damaged", "silent"])
def test_rows_without_any_sound_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_REPLACEMENTS", 5)
    row = _row(0, np.zeros(16000))
    if content == "damaged":
        row["audio"] = {"bytes": b"?", "path": None}
    rows = datasets.Dataset.from_list([row])
    with pytest.raises(UnreadableClip, match="5 draws of 1 to 3 clips gave no sound"):
        write_transfer_set(rows, READER, tmp_path / "set", num_clips=2)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_writing_leaves_nothing(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 1)  # so that two are written
    written = []

    def interrupted(*args):
        if len(written) == 2:
            assert list(tmp_path.iterdir())
            raise KeyboardInterrupt
        written.append(audioset_row(*args))
        return written[-1]

    monkeypatch.setattr(transfer, "audioset_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_transfer_set(rows, READER, tmp_path / "set", num_clips=4)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(rows, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(FileExistsError, match="set already exists; delete it or"):
        write_transfer_set(rows, READER, tmp_path / "set", num_clips=1)
    assert not list((tmp_path / "set").iterdir())


@pytest.mark.parametrize("settings", [{"num_clips": 0}, {"max_sources": 0}])
def test_a_transfer_set_of_nothing_is_refused(rows, tmp_path, settings):
    with pytest.raises(ValueError, match="must be 1 or more"):
        write_transfer_set(
            rows, READER, tmp_path / "set", **{"num_clips": 1, **settings}
        )
