"""A segment of a file is read like a file that was cut out by hand."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from exported_models import random_weights
from small_rows import assert_equal

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.data.clips import Clips, ClipStream
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.prepare.preparation import prepare
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.data.summary import describe
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.tagging.whole_clips import whole_clip_stats
from efficientat_plugin.teachers.store.dump import store_logits
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

RATE = 32000
LABELS = LabelTable(["cat", "dog"], ["cat", "dog"])
# Of a recording of 3 s; some of them overlap, and are longer than the model's clips.
TIMES = ((0.0, 0.5), (0.5, 0.8), (0.9, 2.2), (1.0, 1.5), (2.0, 2.7), (2.7, 3.0))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Rows of segments, and of the files that they would be."""
    folder = tmp_path_factory.mktemp("both")
    found = []
    for name in ("segments", "by_hand"):
        (folder / name).mkdir()
        lines = []
        for take in "pq":
            noise = 0.2 * np.random.default_rng(ord(take)).standard_normal(3 * RATE)
            if name == "segments":
                soundfile.write(folder / name / f"{take}.flac", noise, RATE)
            for number, (start, end) in enumerate(TIMES):
                clip_id, file = f"{take}{number}", f"{take}.flac"
                if name == "by_hand":
                    file = f"{clip_id}.flac"
                    piece = noise[round(start * RATE) : round(end * RATE)]
                    soundfile.write(folder / name / file, piece, RATE)
                label = ("cat", "dog")[number % 2]
                lines.append([clip_id, file, start, end, label])
        header = ["clip_id", "file", "start", "end", "label"]
        with open(folder / name / "clips.csv", "w", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *lines])
        found.append(read_table(folder / name, segments=name == "segments"))
    assert found[0]["video_id"][:] == found[1]["video_id"][:]
    return found


def _clips(rows, tmp_path):
    clips = Clips(rows, ClipReader(LABELS, 0.5))
    return [clips[place] for place in range(len(clips))]


def _stream(rows, tmp_path):
    return list(ClipStream(rows.to_iterable_dataset(), ClipReader(LABELS, 0.5)))


def _whole_clips(rows, tmp_path):
    torch.manual_seed(0)
    student = random_weights(MN(2, width=0.1))
    student.options = {"num_classes": 2, "width": 0.1}
    student.front_end = {"sample_rate": RATE}
    model = TrainedModel(student, LABELS, "multilabel", 0.5)
    scores = {"test": tagging_scores(np.eye(2), np.eye(2))}
    write_model_folder(tmp_path / "m", model, Provenance("m", None, "", "", scores))
    tagger = AudioTagger.from_hparams(str(tmp_path / "m"), run_opts={"device": "cpu"})
    stats = whole_clip_stats(tagger, rows, SkippedClips(0.0))
    scores = stats.summarize()
    assert scores.num_clips == 12
    return [round(scores.mAP, 6), round(scores.AUC, 6)]


def _described(rows, tmp_path):
    summary = describe(rows)
    return [np.round(summary.seconds, 4).tolist(), round(summary.hours, 6)]


def _prepared(rows, tmp_path):
    prepare({"all": rows}, ClipEncoder("flac"), tmp_path / "prepared")
    written = load_rows(str(tmp_path / "prepared"), "all", cache_dir=str(tmp_path))
    assert "start" not in read_table(tmp_path / "prepared").column_names
    return _clips(written, tmp_path)


class Sums(torch.nn.Module):
    """A teacher whose logits are sums of samples."""

    sample_rate, num_classes = RATE, 2

    def forward(self, waveform):
        logits = waveform[:, :48].unflatten(1, (2, 24)).sum(dim=2)
        return StudentOutput(logits, logits.new_zeros(len(logits), 0))


def _stored(rows, tmp_path):
    about = {"teacher": "sums", "labels_sha256": LABELS.sha256, "num_classes": 2}
    about |= {"sample_rate": RATE, "clip_seconds": 0.5}
    with StoreWriter(tmp_path / "store", **about) as writer:
        reader, stored = ClipReader(LABELS, 0.5), LogitsStore(writer.path)
        store_logits(writer, Sums(), rows, reader, stored=stored, batch_size=2)
    return [LogitsStore(tmp_path / "store").lookup(rows["video_id"][:]).logits]


READERS = (_clips, _stream, _whole_clips, _described, _prepared, _stored)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_every_reader_reads_only_the_segment(read, both, tmp_path):
    results = []
    for number, rows in enumerate(both):
        place = tmp_path / str(number)
        place.mkdir()
        results.append(read(rows, place))
    found, expected = results
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        elif hasattr(one, "waveform"):
            assert_equal(one, other)
        else:
            assert one == other


def test_segments_of_a_recording_are_a_group(both):
    assert len(set(both[0]["group"])) == 2 and "group" not in both[1].column_names
