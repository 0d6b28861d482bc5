"""Clips are alike for any number of workers, and bad ones stop nothing."""

import pickle

import datasets
import numpy as np
import pytest
import torch
from small_rows import (
    CLIP_SECONDS,
    LABELS,
    NUM_ROWS,
    SAMPLE_RATE,
    TRAIN_IDS,
    assert_equal,
    damaged,
    write_parquet,
)
from torch.utils.data import DataLoader

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data import clips as clips_module
from efficientat_plugin.data.clips import Clips, ClipStream, collate
from efficientat_plugin.data.decoding import ClipReader, UnreadableClip
from efficientat_plugin.data.mixing import WaveformAugment, WaveformMix
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.sampling import Draw, Draws


def _training_clips(rows, seed=0):
    return Clips(
        rows,
        ClipReader(LABELS, CLIP_SECONDS, SAMPLE_RATE),
        WaveformAugment(gain_db=12, roll_samples=4000),
        WaveformMix(probability=0.5),
        seed,
        replace_unreadable=True,
    )


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
        assert_equal(batch, other)


def test_what_is_random_is_a_function_of_seed_epoch_and_position(rows):
    clips = _training_clips(rows)
    draw = Draw(row=0, epoch=1, position=2)
    assert_equal(clips[draw], clips[draw])
    assert_equal(clips[draw], _training_clips(rows)[draw])
    for other in (
        clips[draw._replace(epoch=2)],
        clips[draw._replace(position=1)],
        _training_clips(rows, seed=1)[draw],
    ):
        assert other.clip_id == clips[draw].clip_id
        assert not torch.equal(other.waveform, clips[draw].waveform)


@pytest.mark.parametrize("mix", [None, WaveformMix(probability=0.0)])
def test_without_augmentation_clips_are_as_read(rows, reader, mix):
    clips = Clips(rows, reader, waveform_mix=mix)
    assert len(clips) == NUM_ROWS
    for index in range(NUM_ROWS):
        assert_equal(clips[index], reader.read(rows[index]))


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
        labelled.add((float(own.labelled), float(partner.labelled)))
    assert len(labelled) == 4  # labelled or not, with labelled or not


@pytest.fixture
def damaged_rows(train_rows):
    """Four rows, of which the second and the last cannot be read."""
    rows = [*train_rows[:4]]
    rows[1], rows[3] = damaged(rows[1]), damaged(rows[3])
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize(("bad", "good"), [(1, 2), (3, 0)])
def test_training_replaces_an_unreadable_clip_by_the_next(
    damaged_rows, reader, bad, good
):
    clips = Clips(damaged_rows, reader, replace_unreadable=True)
    clip = clips[bad]
    assert clip.skipped[0].clip_id == TRAIN_IDS[bad]
    assert clip.skipped[0].reason.startswith("not decodable")
    assert_equal(clip._replace(skipped=()), reader.read(damaged_rows[good]))


def test_evaluation_leaves_unreadable_clips_out(damaged_rows, reader):
    clips = Clips(damaged_rows, reader)
    batch = collate([clips[index] for index in range(4)])
    assert batch.clip_id == [TRAIN_IDS[0], TRAIN_IDS[2]]
    assert batch.waveform.shape == (2, 16000) and batch.labels.shape == (2, 3)
    assert batch.labelled.shape == batch.partner_share.shape == (2,)
    assert [clip_id for clip_id, _ in batch.skipped] == [TRAIN_IDS[1], TRAIN_IDS[3]]


def test_a_worker_stacks_in_the_memory_that_it_shares(rows, reader, monkeypatch):
    clips = [reader.read(row) for row in rows]
    alone = collate(clips)
    assert torch.equal(alone.waveform, torch.stack([clip.waveform for clip in clips]))
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: "one")
    shared = collate(clips)
    assert_equal(alone, shared)
    assert shared.waveform.is_shared() and not alone.waveform.is_shared()


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
        assert_equal(clip._replace(skipped=()), reader.read(damaged_rows[0]))


def test_training_on_unreadable_clips_alone_is_refused(train_rows, reader):
    unreadable = datasets.Dataset.from_list([damaged(row) for row in train_rows])
    clips = Clips(unreadable, reader, replace_unreadable=True)
    message = f"8 clips in a row could not be read, the last one, {TRAIN_IDS[1]}"
    with pytest.raises(UnreadableClip, match=message):
        clips[2]


# --- Streams ------------------------------------------------------------------


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
            write_parquet(folder / f"train-{shard}.parquet", part)
        return load_rows(str(folder), "train", streaming=True)

    return make


def _ids(stream, epoch=0):
    stream.set_epoch(epoch)
    return [clip.clip_id for clip in stream]


def test_a_stream_gives_the_clips_of_the_map(rows, stream_rows, reader):
    clips = Clips(rows, reader)
    for index, clip in enumerate(ClipStream(stream_rows(2), reader)):
        assert_equal(clip, clips[index])
    assert index == NUM_ROWS - 1


def test_a_stream_is_shuffled_and_augmented_by_seed_and_epoch(stream_rows, reader):
    def drawn(seed, epoch):
        augment = WaveformAugment(gain_db=12, roll_samples=4000)
        stream = ClipStream(stream_rows(), reader, augment, shuffle_buffer=8, seed=seed)
        stream.set_epoch(epoch)
        return {clip.clip_id: clip.waveform.numpy().tobytes() for clip in stream}

    first = drawn(seed=1, epoch=0)
    assert sorted(first) == TRAIN_IDS and [*first] != TRAIN_IDS
    assert [*drawn(seed=1, epoch=0).items()] == [*first.items()]
    for other in (drawn(seed=1, epoch=1), drawn(seed=2, epoch=0)):
        assert [*other] != [*first]
        assert all(other[clip_id] != first[clip_id] for clip_id in TRAIN_IDS)


def test_an_epoch_of_a_stream_is_capped_or_repeats(stream_rows, reader):
    assert _ids(ClipStream(stream_rows(), reader, clips_per_epoch=3)) == TRAIN_IDS[:3]
    repeated = _ids(ClipStream(stream_rows(), reader, clips_per_epoch=20))
    assert repeated == (3 * TRAIN_IDS)[:20]


@pytest.mark.parametrize("num_files", [1, 2, 4])
@pytest.mark.parametrize("clips_per_epoch", [6, 8])
def test_processes_share_a_stream(stream_rows, reader, num_files, clips_per_epoch):
    shares = [
        _ids(
            ClipStream(
                stream_rows(num_files),
                reader,
                shuffle_buffer=4,
                clips_per_epoch=clips_per_epoch,
                rank=rank,
                world_size=2,
            )
        )
        for rank in range(2)
    ]
    assert len(shares[0]) == len(shares[1]) == clips_per_epoch / 2
    assert len(set(shares[0] + shares[1])) == clips_per_epoch


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
        assert_equal(clip, alone[clip.clip_id])


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


def test_a_stream_of_fixed_length_continues_after_unreadable_clips(
    damaged_rows, reader
):
    rows = damaged_rows.to_iterable_dataset()
    assert _ids(ClipStream(rows, reader, clips_per_epoch=3)) == [
        TRAIN_IDS[0],
        TRAIN_IDS[2],
        TRAIN_IDS[0],
    ]


def test_a_stream_of_unreadable_clips_alone_is_refused(train_rows, reader, monkeypatch):
    monkeypatch.setattr(clips_module, "MAX_REPLACEMENTS", 10)
    unreadable = datasets.Dataset.from_list([damaged(row) for row in train_rows])
    stream = ClipStream(unreadable.to_iterable_dataset(), reader, clips_per_epoch=4)
    with pytest.raises(UnreadableClip, match="11 clips in a row could not be read"):
        list(stream)


@pytest.mark.parametrize("shuffle_buffer", [0, 8])
def test_processes_cannot_train_on_shares_of_unknown_length(
    stream_rows, reader, shuffle_buffer
):
    with pytest.raises(ValueError, match="by 2 processes needs clips_per_epoch"):
        ClipStream(stream_rows(), reader, shuffle_buffer=shuffle_buffer, world_size=2)
