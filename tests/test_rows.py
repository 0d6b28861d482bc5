"""Rows read alike from every form of the data; clips sound alike from every format."""

import io
import pickle
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import torch
from torch.utils.data import DataLoader

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data import rows as rows_module
from efficientat_plugin.data.mixing import WaveformAugment, WaveformMix
from efficientat_plugin.data.parquet import SCHEMA, audioset_row
from efficientat_plugin.data.rows import (
    COLUMNS,
    ClipReader,
    Clips,
    ClipStream,
    UnreadableClip,
    collate,
    decode,
    load_rows,
    summarize_rows,
)
from efficientat_plugin.data.sampling import Draw, Draws
from efficientat_plugin.data.targets import LabelTable, audioset_labels

SAMPLE_RATE = 32000
CLIP_SECONDS = 0.5
LABELS = LabelTable(["/m/a", "/m/b", "/m/c"], ["A", "B", "C"])
MIDS = [["/m/a"], ["/m/b", "/m/a"], ["/m/c"], []]  # labels of rows 0, 4, ...; 1, 5, ...
NUM_ROWS = 8
TRAIN_IDS = [
    f"-_train-00{number}" for number in range(NUM_ROWS)
]  # as long as YouTube's
EVAL_IDS = ["-_eval--000", "-_eval--001"]


def _noise(seed, num_samples=16000):
    return 0.2 * np.random.default_rng(seed).standard_normal(num_samples)


def _rows(ids):
    return [
        audioset_row(clip_id, _noise(number), SAMPLE_RATE, MIDS[number % len(MIDS)])
        for number, clip_id in enumerate(ids)
    ]


def _write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def _damaged(row):
    return {**row, "audio": {"bytes": b"this is no sound", "path": "a.wav"}}


@pytest.fixture(scope="module")
def train_rows():
    return _rows(TRAIN_IDS)


@pytest.fixture(scope="module")
def rows(train_rows, tmp_path_factory):
    """Eight rows in two files, map-style."""
    folder = tmp_path_factory.mktemp("rows")
    _write_parquet(folder / "train-0.parquet", train_rows[:5])
    _write_parquet(folder / "train-1.parquet", train_rows[5:])
    return load_rows(str(folder), "train")


@pytest.fixture
def reader():
    return ClipReader(LABELS, CLIP_SECONDS, SAMPLE_RATE)


def _training_clips(rows, seed=0):
    return Clips(
        rows,
        ClipReader(LABELS, CLIP_SECONDS, SAMPLE_RATE),
        WaveformAugment(gain_db=12, roll_samples=4000),
        WaveformMix(probability=0.5),
        seed,
        replace_unreadable=True,
    )


def _assert_equal(one, other):
    """Clips or batches, field by field."""
    for field, value in one._asdict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, field)), field
        else:
            assert value == getattr(other, field), field


# --- Finding the rows -----------------------------------------------------------


def _one_file(folder, split, rows):
    _write_parquet(folder / f"{split}.parquet", rows)
    return folder / f"{split}.parquet"


def _in_parquet(pattern):
    def write(folder, split, rows):
        half = (len(rows) + 1) // 2
        for shard, part in enumerate((rows[:half], rows[half:])):
            _write_parquet(folder / pattern.format(split=split, shard=shard), part)
        return folder

    return write


def _saved(folder, split, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / split))
    return folder / split


def _saved_by_split(folder, split, rows):
    part = datasets.DatasetDict({split: datasets.Dataset.from_list(rows)})
    part.save_to_disk(str(folder))
    return folder


def _with_audio_feature(folder, split, rows):
    """As on the hub, where the file says that `datasets` should decode."""
    features = datasets.Features(
        {
            "video_id": datasets.Value("string"),
            "audio": datasets.Audio(),
            "labels": datasets.List(datasets.Value("string")),
            "human_labels": datasets.List(datasets.Value("string")),
        }
    )
    table = pa.Table.from_pylist(rows, SCHEMA)
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    path = folder / "data" / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return folder


def _audio_files(folder, split, rows):
    names = ["Y{}.wav", "{}_30.000.flac", "{}.flac", "deeper/{}_0.wav"]
    header = (
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs=2"
    )
    header += "\n# YTID, start_seconds, end_seconds, positive_labels\n"
    lines = ['absentclip0, 30.000, 40.000, "/m/a"\n']
    for number, row in enumerate(rows):
        file = folder / "audio" / names[number % len(names)].format(row["video_id"])
        file.parent.mkdir(parents=True, exist_ok=True)
        samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
        soundfile.write(file, samples, SAMPLE_RATE)
        lines.append(f'{row["video_id"]}, 0.0, 10.0, "{",".join(row["labels"])}"\n')
    (folder / "audio" / "README.txt").write_text("not a clip")
    (folder / f"{split}_segments.csv").write_text(header + "".join(lines))
    return folder


FORMS = {
    "file": _one_file,
    "data_folders": _in_parquet("data/{split}/{shard}.parquet"),
    "split_folders": _in_parquet("{split}/{shard}.parquet"),
    "data_names": _in_parquet("data/{split}-0000{shard}-of-00002.parquet"),
    "names": _in_parquet("{split}-0000{shard}-of-00002.parquet"),
    "saved": _saved,
    "saved_by_split": _saved_by_split,
    "audio_feature": _with_audio_feature,
    "audio_files": _audio_files,
}


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_read_alike_from_every_form(form, streaming, train_rows, reader, tmp_path):
    # The official CSV has no clips without labels.
    labelled = [row for row in train_rows if row["labels"]]
    dataset = FORMS[form](tmp_path / "data set", "bal_train", labelled)
    if form not in ("file", "saved", "saved_by_split"):
        FORMS[form](tmp_path / "data set", "eval", _rows(EVAL_IDS))
    loaded = load_rows(
        str(dataset), "bal_train", streaming, cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded, datasets.IterableDataset) == streaming
    found = list(loaded)
    assert [row["video_id"] for row in found] == [row["video_id"] for row in labelled]
    assert [row["labels"] for row in found] == [row["labels"] for row in labelled]
    for row, expected in zip(found, labelled, strict=True):
        assert set(row) == set(COLUMNS)
        _assert_equal(reader.read(row), reader.read(expected))


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("form", ["data_folders", "audio_files"])
def test_splits_joined_by_plus_keep_their_order(form, streaming, tmp_path):
    FORMS[form](tmp_path, "bal_train", _rows(TRAIN_IDS[:3]))
    FORMS[form](tmp_path, "eval", _rows(EVAL_IDS))
    for split, expected in {
        "bal_train+eval": TRAIN_IDS[:3] + EVAL_IDS,
        "eval+bal_train": EVAL_IDS + TRAIN_IDS[:3],
    }.items():
        joined = load_rows(str(tmp_path), split, streaming)
        assert [row["video_id"] for row in joined] == expected


def test_segments_of_absent_files_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    dataset = _audio_files(tmp_path, "eval", _rows(EVAL_IDS))
    assert len(load_rows(str(dataset), "eval")) == 2
    assert "eval_segments.csv: 2 clips, 1 without a file" in caplog.text


def test_segments_without_any_file_are_refused(tmp_path):
    (tmp_path / "eval_segments.csv").write_text('-_eval--000, 0, 10, "/m/a"\n')
    with pytest.raises(FileNotFoundError, match="none of the 1 clips in .* name the"):
        load_rows(str(tmp_path), "eval")


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_missing_column_is_refused_with_what_was_found(streaming, tmp_path):
    table = pa.table({"video_id": ["a"], "sound": [b"?"], "labels": [["/m/a"]]})
    pq.write_table(table, tmp_path / "eval.parquet")
    message = r"\(eval\) has no column audio; .* found were video_id, sound, labels"
    with pytest.raises(ValueError, match=message):
        load_rows(str(tmp_path), "eval", streaming)


def test_a_folder_without_the_split_is_refused(tmp_path):
    _write_parquet(tmp_path / "eval" / "0.parquet", _rows(EVAL_IDS))
    with pytest.raises(FileNotFoundError, match="no split 'train': expected train/"):
        load_rows(str(tmp_path), "train")


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_hub_id_without_network_is_refused_at_once(streaming, tmp_path):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="neither a file or folder") as error:
        load_rows("nobody/nothing", "train", streaming, cache_dir=str(tmp_path))
    assert time.monotonic() - start < 10
    assert len(str(error.value).splitlines()) == 1


def test_an_error_of_the_hub_may_be_without_words(monkeypatch):
    def load_dataset(*_args, **_kwargs):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match="hub gives \\(ConnectionError: \\)"):
        load_rows("nobody/nothing", "train")


def test_the_label_summary_reads_no_audio(rows):
    def refuse_audio(batch):
        assert "audio" not in batch
        return batch

    guarded = rows.with_transform(refuse_audio)
    with pytest.raises(AssertionError):
        guarded[0]
    summary = summarize_rows(guarded, LABELS)
    assert summary.clip_ids == TRAIN_IDS
    assert summary.indices == [[0], [0, 1], [2], []] * 2
    assert summary.counts.tolist() == [4, 2, 2]


def test_real_rows_read_in_both_ways(shared, tmp_path):
    dataset = str(shared / "data" / "audioset_schema")
    both = load_rows(dataset, "bal_train+eval", cache_dir=str(tmp_path))
    assert len(both) == 183 + 131
    assert both.column_names == list(COLUMNS)
    summary = summarize_rows(both, audioset_labels())
    assert summary.num_labelled == len(set(summary.clip_ids)) == 314
    assert not summary.unknown

    stream = load_rows(dataset, "eval", streaming=True, cache_dir=str(tmp_path))
    in_passing = list(stream.take(2))
    reader = ClipReader(audioset_labels())
    for row, number in zip(in_passing, (183, 184), strict=True):
        clip = reader.read(row)
        _assert_equal(clip, reader.read(both[number]))
        assert clip.waveform.shape == (320000,)
        assert clip.waveform.abs().max() > 0 and clip.labels.sum() >= 1


# --- Decoding -------------------------------------------------------------------

FORMATS = {
    "wav_int16": ("WAV", "PCM_16", 44100),
    "wav_int24": ("WAV", "PCM_24", 8000),
    "wav_float32": ("WAV", "FLOAT", 192000),
    "wav_at_the_rate": ("WAV", "PCM_16", 32000),
    "flac": ("FLAC", "PCM_16", 22050),
    "vorbis": ("OGG", "VORBIS", 44100),
    "opus": ("OGG", "OPUS", 48000),
    "mp3": ("MP3", "MPEG_LAYER_III", 44100),
}


def _encode(waveform, sample_rate=SAMPLE_RATE, form="WAV", subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, format=form, subtype=subtype)
    return file.getvalue()


def _tone(frequency, seconds, sample_rate):
    return np.sin(
        2 * np.pi * frequency * np.arange(seconds * sample_rate) / sample_rate
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_tone_keeps_its_pitch_level_and_length(name):
    form, subtype, rate = FORMATS[name]
    content = _encode(0.5 * _tone(1000, 1, rate), rate, form, subtype)
    waveform = decode(content, SAMPLE_RATE, SAMPLE_RATE)
    assert waveform.dtype == np.float32 and waveform.shape == (SAMPLE_RATE,)
    middle = waveform[8000:24000]  # half a second: bins of 2 Hz
    spectrum = np.abs(np.fft.rfft(middle)) / 8000
    assert spectrum.argmax() == 500
    assert spectrum[500] == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_the_start_is_that_of_the_whole_file_resampled(name):
    form, subtype, rate = FORMATS[name]
    content = _encode(_noise(0, 3 * rate), rate, form, subtype)
    whole, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    expected = soxr.resample(whole, rate, SAMPLE_RATE, quality="HQ")
    for num_samples in (SAMPLE_RATE, 70001, len(expected)):
        waveform = decode(content, SAMPLE_RATE, num_samples)
        np.testing.assert_allclose(waveform, expected[:num_samples], rtol=0, atol=1e-4)


def test_samples_at_the_rate_are_left_as_they_are():
    samples = np.array([0, 1, -32768, 32767] * 10, np.int16)
    waveform = decode(_encode(samples, subtype="PCM_16"), SAMPLE_RATE, 40)
    assert np.array_equal(waveform, samples / np.float32(32768))


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_are_averaged(channels):
    waveforms = np.stack([_noise(seed, 70000) for seed in range(channels)], axis=1)
    waveform = decode(_encode(waveforms), SAMPLE_RATE, 70000)
    np.testing.assert_allclose(waveform, waveforms.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 32000])
def test_short_sound_is_padded_with_zeros(rate):
    waveform = decode(_encode(_noise(0, rate // 20), rate), SAMPLE_RATE, SAMPLE_RATE)
    assert waveform.shape == (SAMPLE_RATE,)
    assert waveform[1500:1600].any() and not waveform[1600:].any()


def test_silence_is_sound():
    assert not decode(_encode(np.zeros(800)), SAMPLE_RATE, 1600).any()


def test_a_long_file_is_read_no_further_than_needed(tmp_path):
    ten_minutes = np.zeros(600 * 8000, np.float32)
    ten_minutes[:8000] = _noise(0, 8000)
    ten_minutes[8000 + 1600 :] = np.nan  # from 0.2 s behind the cut
    soundfile.write(tmp_path / "long.wav", ten_minutes, 8000, subtype="FLOAT")
    waveform = decode(tmp_path / "long.wav", SAMPLE_RATE, SAMPLE_RATE)
    assert waveform.shape == (SAMPLE_RATE,) and waveform.any()
    with pytest.raises(UnreadableClip, match="not finite"):
        decode(tmp_path / "long.wav", SAMPLE_RATE, 2 * SAMPLE_RATE)


def test_sound_is_read_from_bytes_paths_and_dicts(tmp_path):
    content = _encode(_noise(0))
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    expected = decode(content, SAMPLE_RATE, 16000)
    assert expected.any()
    for audio in (
        path,
        str(path),
        {"path": str(path)},
        {"bytes": None, "path": str(path)},
        {"bytes": content, "path": None},
        {"bytes": content, "path": "a name alone.wav"},
    ):
        assert np.array_equal(decode(audio, SAMPLE_RATE, 16000), expected)


def test_a_file_that_breaks_off_ends_in_silence():
    # Its header tells of all 4 s.
    whole = _encode(_noise(0, 4 * 32000), 32000, "MP3", "MPEG_LAYER_III")
    content = whole[: len(whole) // 2]
    readable, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    assert 16000 < len(readable) < 64000
    waveform = decode(content, SAMPLE_RATE, 4 * SAMPLE_RATE)
    assert np.array_equal(waveform[: len(readable)], readable)
    assert not waveform[len(readable) :].any()


UNREADABLE = {
    "no_bytes": (b"", "not decodable"),
    "no_frames": (_encode(np.zeros(0)), "it has no samples"),
    "nan": (_encode(np.array([0.0, np.nan, 0.0])), "not finite"),
    "infinite": (_encode(np.array([0.0, np.inf])), "not finite"),
    "text": (b"<html>This video is not available</html>", "not decodable"),
    "flac_header": (
        _encode(_noise(0), form="FLAC", subtype=None)[:30],
        "not decodable",
    ),
    "flac_half": (
        _encode(_noise(0), form="FLAC", subtype=None)[:9000],
        "not decodable",
    ),
    "rate": (_encode(_noise(0), 10), "claims a sample rate of 10 Hz"),
    "absent": ("/absent/clip.wav", "not decodable: .*absent"),
    "folder": ("/", "not decodable"),
    "none": (None, "neither bytes nor the path"),
    "null_struct": ({"bytes": None, "path": None}, "neither bytes nor the path"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_sound_is_refused_with_a_reason(name):
    audio, reason = UNREADABLE[name]
    with pytest.raises(UnreadableClip, match=reason):
        decode(audio, SAMPLE_RATE, 16000)


def test_text_in_a_file_called_wav_is_refused(tmp_path):
    (tmp_path / "clip.wav").write_text("404: not found")
    with pytest.raises(UnreadableClip, match="not decodable"):
        decode(tmp_path / "clip.wav", SAMPLE_RATE, 16000)


def test_a_clip_has_what_its_row_says(reader):
    row = audioset_row("clip", _noise(0), SAMPLE_RATE, ["/m/c", "/m/?", "/m/a", "/m/a"])
    clip = reader.read(row)
    assert clip.clip_id == "clip" and clip.waveform.shape == (16000,)
    assert clip.labels.tolist() == [1, 0, 1] and clip.labelled == 1


@pytest.mark.parametrize("labels", [[], None, ["/m/?"]])
def test_a_clip_without_known_labels_is_unlabelled(reader, labels):
    row = audioset_row("clip", _noise(0), SAMPLE_RATE) | {"labels": labels}
    clip = reader.read(row)
    assert not clip.labels.any() and clip.labelled == 0


def test_clips_of_no_length_are_refused():
    with pytest.raises(ValueError, match="clip_seconds=0 must be above 0"):
        ClipReader(LABELS, clip_seconds=0)


# --- Map-style clips ------------------------------------------------------------


def _batches(clips, num_workers=0, start_method=None):
    loader = DataLoader(
        clips,
        batch_size=3,
        sampler=Draws(len(clips), seed=1),
        collate_fn=collate,
        num_workers=num_workers,
        multiprocessing_context=start_method,
    )
    return list(loader)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_clips_are_alike_for_any_number_of_workers(rows, start_method):
    clips = _training_clips(rows)
    expected = _batches(clips)
    found = _batches(clips, 2, start_method)
    assert sum(len(batch.clip_id) for batch in expected) == NUM_ROWS
    for batch, other in zip(expected, found, strict=True):
        _assert_equal(batch, other)


def test_what_is_random_is_a_function_of_seed_epoch_and_position(rows):
    clips = _training_clips(rows)
    draw = Draw(row=0, epoch=1, position=2)
    _assert_equal(clips[draw], clips[draw])
    _assert_equal(clips[draw], _training_clips(rows)[draw])
    for other in (
        clips[draw._replace(epoch=2)],
        clips[draw._replace(position=1)],
        _training_clips(rows, seed=1)[draw],
    ):
        assert other.clip_id == clips[draw].clip_id
        assert not torch.equal(other.waveform, clips[draw].waveform)


def test_without_augmentation_clips_are_as_read(rows, reader):
    clips = Clips(rows, reader)
    assert len(clips) == NUM_ROWS
    for index in range(NUM_ROWS):
        _assert_equal(clips[index], reader.read(rows[index]))


def test_labels_are_mixed_like_the_waveforms(rows, reader):
    alone = {clip_id: Clips(rows, reader)[i] for i, clip_id in enumerate(TRAIN_IDS)}
    mix = WaveformMix(probability=1.0)
    labelled = set()
    for position in range(24):
        clip = Clips(rows, reader, waveform_mix=mix)[Draw(position % 4, 0, position)]
        own, partner = alone[clip.clip_id], alone[clip.partner_id]
        share = clip.partner_share
        assert clip.clip_id == TRAIN_IDS[position % 4] and 0 <= share <= 0.5
        expected = mix.mix(own.waveform.numpy(), partner.waveform.numpy(), 1 - share)
        assert np.array_equal(clip.waveform, expected)
        torch.testing.assert_close(
            clip.labels, (1 - share) * own.labels + share * partner.labels
        )
        assert clip.labelled == (1 - share) * own.labelled + share * partner.labelled
        labelled.add((own.labelled, partner.labelled))
    assert len(labelled) == 4  # labelled or not, with labelled or not


def test_an_unmixed_clip_has_no_partner(rows, reader):
    clip = Clips(rows, reader, waveform_mix=WaveformMix(probability=0.0))[0]
    assert clip.partner_id == "" and clip.partner_share == 0


@pytest.fixture
def damaged_rows(train_rows):
    """Four rows, of which the second and the last cannot be read."""
    rows = [*train_rows[:4]]
    rows[1], rows[3] = _damaged(rows[1]), _damaged(rows[3])
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize(("bad", "good"), [(1, 2), (3, 0)])
def test_training_replaces_an_unreadable_clip_by_the_next(
    damaged_rows, reader, bad, good
):
    clips = Clips(damaged_rows, reader, replace_unreadable=True)
    clip = clips[bad]
    assert clip.skipped[0].clip_id == TRAIN_IDS[bad]
    assert clip.skipped[0].reason.startswith("not decodable")
    _assert_equal(clip._replace(skipped=()), reader.read(damaged_rows[good]))


def test_evaluation_leaves_unreadable_clips_out(damaged_rows, reader):
    clips = Clips(damaged_rows, reader)
    batch = collate([clips[index] for index in range(4)])
    assert batch.clip_id == [TRAIN_IDS[0], TRAIN_IDS[2]]
    assert batch.waveform.shape == (2, 16000) and batch.labels.shape == (2, 3)
    assert batch.labelled.shape == batch.partner_share.shape == (2,)
    assert [clip_id for clip_id, _ in batch.skipped] == [TRAIN_IDS[1], TRAIN_IDS[3]]


def test_a_batch_may_be_empty(damaged_rows, reader):
    clips = Clips(damaged_rows, reader, WaveformAugment(12), WaveformMix(1.0))
    batch = collate([clips[1], clips[3]])
    assert batch.clip_id == batch.partner_id == []
    assert len(batch.waveform) == len(batch.labels) == len(batch.labelled) == 0
    assert len(batch.skipped) == 2


def test_an_unreadable_partner_is_named_and_left_out(damaged_rows, reader):
    clips = Clips(damaged_rows, reader, waveform_mix=WaveformMix(probability=1.0))
    drawn = [clips[Draw(0, 0, position)] for position in range(20)]
    unmixed = [clip for clip in drawn if not clip.partner_id]
    assert 0 < len(unmixed) < 20
    for clip in unmixed:
        assert clip.skipped[0].clip_id in (TRAIN_IDS[1], TRAIN_IDS[3])
        _assert_equal(clip._replace(skipped=()), reader.read(damaged_rows[0]))


def test_training_on_unreadable_clips_alone_is_refused(train_rows, reader):
    unreadable = datasets.Dataset.from_list([_damaged(row) for row in train_rows])
    clips = Clips(unreadable, reader, replace_unreadable=True)
    message = f"8 clips in a row could not be read, the last one, {TRAIN_IDS[1]}"
    with pytest.raises(UnreadableClip, match=message):
        clips[2]


# --- Clips in passing -----------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch):
    """`datasets` sleeps 5 s whenever a shuffled stream ends."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture(scope="module")
def stream_rows(train_rows, tmp_path_factory):
    """Makes the eight rows, in so many files, a stream."""

    def make(num_files=1):
        folder = tmp_path_factory.mktemp("stream")
        size = NUM_ROWS // num_files
        for shard in range(num_files):
            part = train_rows[shard * size : (shard + 1) * size]
            _write_parquet(folder / f"train-{shard}.parquet", part)
        return load_rows(str(folder), "train", streaming=True)

    return make


def _ids(stream, epoch=0):
    stream.set_epoch(epoch)
    return [clip.clip_id for clip in stream]


def test_a_stream_gives_the_clips_of_the_map(rows, stream_rows, reader):
    clips = Clips(rows, reader)
    for index, clip in enumerate(ClipStream(stream_rows(2), reader)):
        _assert_equal(clip, clips[index])
    assert index == NUM_ROWS - 1


def test_a_stream_is_shuffled_by_seed_and_epoch(stream_rows, reader):
    def ids(seed, epoch):
        return _ids(
            ClipStream(stream_rows(), reader, shuffle_buffer=8, seed=seed), epoch
        )

    first = ids(seed=1, epoch=0)
    assert sorted(first) == TRAIN_IDS and first != TRAIN_IDS
    assert ids(seed=1, epoch=0) == first
    assert ids(seed=1, epoch=1) != first
    assert ids(seed=2, epoch=0) != first


def test_a_stream_augments_by_seed_epoch_and_clip(stream_rows, reader):
    def first(seed, epoch):
        augment = WaveformAugment(gain_db=12, roll_samples=4000)
        stream = ClipStream(stream_rows(), reader, augment, seed=seed)
        stream.set_epoch(epoch)
        return next(iter(stream)).waveform

    assert torch.equal(first(seed=1, epoch=1), first(seed=1, epoch=1))
    assert not torch.equal(first(seed=1, epoch=1), first(seed=1, epoch=2))
    assert not torch.equal(first(seed=1, epoch=1), first(seed=2, epoch=1))


def test_an_epoch_of_a_stream_is_capped_or_repeats(stream_rows, reader):
    assert _ids(ClipStream(stream_rows(), reader, clips_per_epoch=3)) == TRAIN_IDS[:3]
    repeated = _ids(ClipStream(stream_rows(), reader, clips_per_epoch=20))
    assert repeated == (3 * TRAIN_IDS)[:20]


@pytest.mark.parametrize("num_files", [1, 2, 4])
@pytest.mark.parametrize("clips_per_epoch", [None, 6, 8])
def test_processes_share_a_stream(stream_rows, reader, num_files, clips_per_epoch):
    shares = [
        _ids(
            ClipStream(
                stream_rows(num_files),
                reader,
                shuffle_buffer=4 if clips_per_epoch else 0,
                clips_per_epoch=clips_per_epoch,
                rank=rank,
                world_size=2,
            )
        )
        for rank in range(2)
    ]
    assert len(shares[0]) == len(shares[1]) == (clips_per_epoch or NUM_ROWS) / 2
    assert len(set(shares[0] + shares[1])) == (clips_per_epoch or NUM_ROWS)


@pytest.mark.parametrize("num_files", [1, 2, 4])
@pytest.mark.parametrize("clips_per_epoch", [None, 7])
def test_workers_share_a_stream(stream_rows, reader, num_files, clips_per_epoch):
    augment = WaveformAugment(gain_db=12, roll_samples=4000)
    stream = ClipStream(
        stream_rows(num_files), reader, augment, clips_per_epoch=clips_per_epoch
    )
    alone = {clip.clip_id: clip for clip in ClipStream(stream_rows(), reader, augment)}
    loader = DataLoader(stream, batch_size=2, collate_fn=list, num_workers=2)
    found = [clip for batch in loader for clip in batch]
    assert len(found) == (clips_per_epoch or NUM_ROWS)
    assert len({clip.clip_id for clip in found}) >= min(len(found), 7)
    for clip in found:
        _assert_equal(clip, alone[clip.clip_id])


def test_a_stream_survives_pickling_as_spawned_workers_need(stream_rows, reader):
    stream = ClipStream(stream_rows(2), reader, clips_per_epoch=4)
    copy = pickle.loads(pickle.dumps(stream))
    loader = DataLoader(copy, batch_size=2, collate_fn=collate, num_workers=2)
    found = [clip_id for batch in loader for clip_id in batch.clip_id]
    assert sorted(found) == [TRAIN_IDS[i] for i in (0, 1, 4, 5)]


def test_a_stream_skips_and_names_unreadable_clips(damaged_rows, reader):
    clips = list(ClipStream(damaged_rows.to_iterable_dataset(), reader))
    assert [clip.clip_id for clip in clips] == [TRAIN_IDS[0], TRAIN_IDS[2], ""]
    batch = collate(clips)
    assert batch.clip_id == [TRAIN_IDS[0], TRAIN_IDS[2]]
    assert [clip_id for clip_id, _ in batch.skipped] == [TRAIN_IDS[1], TRAIN_IDS[3]]
    assert all(isinstance(skipped, Skipped) for skipped in batch.skipped)


def test_a_stream_of_fixed_length_goes_on_behind_unreadable_clips(damaged_rows, reader):
    rows = damaged_rows.to_iterable_dataset()
    assert _ids(ClipStream(rows, reader, clips_per_epoch=3)) == [
        TRAIN_IDS[0],
        TRAIN_IDS[2],
        TRAIN_IDS[0],
    ]


def test_a_stream_of_unreadable_clips_alone_is_refused(train_rows, reader, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_REPLACEMENTS", 10)
    unreadable = datasets.Dataset.from_list([_damaged(row) for row in train_rows])
    stream = ClipStream(unreadable.to_iterable_dataset(), reader, clips_per_epoch=4)
    with pytest.raises(UnreadableClip, match="11 clips in a row could not be read"):
        list(stream)


def test_processes_cannot_train_on_shares_of_unknown_length(stream_rows, reader):
    with pytest.raises(ValueError, match="needs clips_per_epoch"):
        ClipStream(stream_rows(), reader, shuffle_buffer=8, world_size=2)
