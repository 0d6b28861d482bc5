"""Stored logits of frames follow a clip as its labels and an online teacher do."""

from functools import partial

import pytest
import torch
from speechbrain import Stage

from efficientat_plugin.data.clips import Clips, collate
from efficientat_plugin.data.events.event_reader import (
    EventClipReader,
    open_event_clips,
)
from efficientat_plugin.data.frame_mixing import FrameShift
from efficientat_plugin.data.mixing import Mixup, WaveformAugment, WaveformMix
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.sampling import Draw
from efficientat_plugin.data.soundscapes import make_soundscapes
from efficientat_plugin.features import LogMel, SpecMask
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.teachers.online_frames import FrameTeacher
from efficientat_plugin.teachers.store.dump import fill_store
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter
from efficientat_plugin.teachers.stored import StoredTeacher
from efficientat_plugin.teachers.stored_frames import StoredFrameTeacher
from efficientat_plugin.training.event_brain import EventBrain, EventLoss

SECONDS, FRAMES = 2.0, 50
CERTAIN = 40.0  # a logit whose probability is 1
LOG_MEL = {"sample_rate": 16000, "n_mels": 64, "win_length": 400, "hop_length": 160}
LOG_MEL |= {"n_fft": 512, "f_max": 7000.0, "f_min_jitter": 0, "f_max_jitter": 0}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scapes")
    shares = {"valid_share": 0.0, "test_share": 0.0}
    lengths = {"clip_seconds": SECONDS, "event_seconds": (0.3, 1.0)}
    make_soundscapes(folder, 8, **shares, **lengths)
    return open_event_clips(folder, folder / "events" / "train.tsv")


@pytest.fixture(scope="module")
def reader(opened):
    return EventClipReader(opened, FRAMES, clip_seconds=SECONDS, sample_rate=16000)


def _batch(opened, reader, epoch=0, **more):
    clips = Clips(opened.rows, reader, **more)
    return collate([clips[Draw(row, epoch, row)] for row in range(len(clips))])


@pytest.fixture(scope="module")
def labels_as_logits(opened, reader, tmp_path_factory):
    """A store whose teacher is certain of what the labels say."""
    path = tmp_path_factory.mktemp("labels") / "store"
    batch = _batch(opened, reader)
    with StoreWriter(path, **_about(opened)) as writer:
        writer.append(batch.clip_id, CERTAIN * (2 * batch.strong - 1))
    return path


def _about(opened, **more):
    about = {"teacher": "labels", "labels_sha256": opened.labels.sha256}
    about |= {"num_classes": len(opened.labels), "sample_rate": 16000}
    about |= {"num_frames": FRAMES, "frame_seconds": 0.04, "clip_seconds": SECONDS}
    return about | more


class _Recording(EventLoss):
    """Keeps the targets of the last batch."""

    def forward(self, output, strong, weak, teacher=None):
        self.strong, self.teacher = strong, teacher
        return super().forward(output, strong, weak, teacher)


def _brain(opened, teacher, mixup=None, frame_shift=None, spec_mask=None):
    student, log_mel = FrameMN(len(opened.labels), width=0.1), LogMel(**LOG_MEL)
    hparams = {"student": student, "teacher": teacher, "loss": _Recording()}
    hparams |= {"mixup": mixup, "frame_shift": frame_shift, "seed": 0}
    hparams |= {"layer_decay": 1.0, "head_scale": 1.0, "max_unreadable_share": 0.0}
    modules = {"student": student, "log_mel": log_mel}
    modules["spec_mask"] = spec_mask or SpecMask()
    if frame_shift is not None:
        modules["frame_shift"] = frame_shift
    optimizer = partial(torch.optim.Adam, lr=0.01)
    brain = EventBrain(modules, optimizer, hparams, {"device": "cpu"})
    brain.modules.train()
    return brain


def _loss(brain, batch, seed=0):
    torch.manual_seed(seed)
    outputs = brain.compute_forward(batch, Stage.TRAIN)
    return brain.compute_objectives(outputs, batch, Stage.TRAIN)


CHANGES = {
    "nothing": ({}, {}),
    "roll": ({"augment": WaveformAugment(6, roll_samples=9000)}, {}),
    "mixed waveforms": ({"waveform_mix": WaveformMix(1.0)}, {}),
    "shift": ({}, {"frame_shift": FrameShift(40.0)}),
    "mixup": ({}, {"mixup": Mixup(0.3, keep_larger=False)}),
    "time masks": ({}, {"spec_mask": SpecMask(0, max_frames=60)}),
    "all": (
        {
            "augment": WaveformAugment(6, roll_samples=9000),
            "waveform_mix": WaveformMix(0.7),
        },
        {
            "frame_shift": FrameShift(40.0),
            "mixup": Mixup(0.3),
            "spec_mask": SpecMask(8, max_frames=60),
        },
    ),
}


@pytest.mark.parametrize(("of_clips", "of_batch"), CHANGES.values(), ids=CHANGES)
def test_logits_that_say_what_labels_say_follow_them(
    opened, reader, labels_as_logits, of_clips, of_batch
):
    brain = _brain(opened, StoredFrameTeacher(labels_as_logits), **of_batch)
    plain = _batch(opened, reader)
    for epoch in range(3):
        batch = _batch(opened, reader, epoch, **of_clips)
        loss = _loss(brain, batch, epoch)
        found, expected = brain.hparams.loss.teacher, brain.hparams.loss.strong
        assert torch.allclose(found.scores, expected.scores, atol=1e-6)
        assert torch.equal(found.weight, expected.weight) and found.weight.all()
        assert loss.isfinite()
    moved = not torch.equal(expected.scores, plain.strong)
    changes_targets = {*of_batch} - {"spec_mask"} or of_clips
    assert moved == bool(changes_targets), "nothing happened to the batch"


def test_the_published_shift_and_mixup_change_logits_on_their_own(opened, reader):
    """Without the teacher's following them, targets would differ: the law can fail."""
    batch = _batch(opened, reader)
    brain = _brain(opened, None, frame_shift=FrameShift(40.0), mixup=Mixup(0.3))
    _loss(brain, batch)
    assert not torch.allclose(brain.hparams.loss.strong.scores, batch.strong)


def test_a_clip_without_a_row_adds_nothing(opened, reader, labels_as_logits, tmp_path):
    batch = _batch(opened, reader, waveform_mix=WaveformMix(1.0))
    known = batch.clip_id[::2]
    logits = LogitsStore(labels_as_logits).lookup(known).logits
    with StoreWriter(tmp_path / "half", **_about(opened)) as writer:
        writer.append(known, logits)
    teacher = StoredFrameTeacher(tmp_path / "half")
    brain = _brain(opened, teacher)
    _loss(brain, batch)
    share = batch.partner_share
    weight = (1 - share) * torch.tensor([i in known for i in batch.clip_id])
    weight += share * torch.tensor([i in known for i in batch.partner_id])
    assert torch.allclose(brain.hparams.loss.teacher.weight, weight.float())
    line = teacher.describe(batch.clip_id)
    assert "stored logits of labels, 8 classes in 50 frames of 0.04 s; 4 of 8" in line
    assert line.endswith("clips have none and are trained on their labels alone")


def _network(opened):
    """A teacher whose probabilities differ from frame to frame, untrained as it is."""
    torch.manual_seed(5)
    network = FrameMN(len(opened.labels), width=0.2)
    torch.nn.init.normal_(network.strong_head.weight, std=0.5)
    teacher = WaveformStudent(LogMel(**LOG_MEL), network)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # statistics are those of the next batch
    with torch.no_grad():
        teacher.train()(torch.randn(4, 32000) * torch.rand(4, 32000))
    return teacher.eval()


def test_stored_is_online_for_clips_as_they_are(opened, reader, tmp_path):
    """To float16's precision; the online teacher scores the student's own log-mel."""
    network = _network(opened)
    batch = _batch(opened, reader)
    fill_store(
        *(tmp_path / "s", "fmn", Ensemble([network]).eval(), opened.labels),
        *(opened.rows, SECONDS),
        of_frames=True,
    )
    online = FrameTeacher(network, LogMel(**LOG_MEL))
    losses = {}
    for name, teacher in (
        ("stored", StoredFrameTeacher(tmp_path / "s")),
        ("online", online),
    ):
        brain = _brain(opened, teacher)
        brain.hparams.student.load_state_dict(_brain_state(opened))
        losses[name] = _loss(brain, batch).item()
        losses[f"targets {name}"] = brain.hparams.loss.teacher.scores
    stored, online_scores = losses["targets stored"], losses["targets online"]
    assert online_scores.std() > 0.05, "the teacher says the same everywhere"
    assert (stored - online_scores).abs().max() < 1e-3
    assert losses["stored"] == pytest.approx(losses["online"], rel=1e-3)


def _brain_state(opened):
    torch.manual_seed(6)
    return FrameMN(len(opened.labels), width=0.1).state_dict()


# --- Refusals ----------------------------------------------------------------------

OTHER = {
    "rate": ({"frame_seconds": 0.02}, "has frames of 0.02 s and the student of 0.04 s"),
    "length": ({"clip_seconds": 1.0}, "of clips of 1 s in 50 frames .*--clip_seconds"),
    "number": ({"num_frames": 25}, "in 25 frames .* have 2 s in 50 frames"),
    "short clips": ({"short_clips": "repeat"}, "short clips: repeat"),
}


@pytest.mark.parametrize(("other", "text"), OTHER.values(), ids=OTHER)
def test_other_frames_and_clips_are_refused(opened, tmp_path, other, text):
    StoreWriter(tmp_path / "s", **_about(opened, **other)).close()
    teacher = StoredFrameTeacher(tmp_path / "s")
    with pytest.raises(ValueError, match=text):
        teacher.check_frames(FRAMES, 0.04, SECONDS)


def test_other_classes_and_rows_of_other_clips_are_refused(
    opened, reader, labels_as_logits, tmp_path
):
    summary = summarize_rows(opened.rows, opened.labels)
    teacher = StoredFrameTeacher(labels_as_logits)
    teacher.check_frames(FRAMES, 0.04, SECONDS)
    assert "100.0% of 8 clips stored, 8 classes in 50 frames" in teacher.check(
        summary, opened.labels
    )
    StoreWriter(tmp_path / "t", **_about(opened, labels_sha256="0" * 64)).close()
    with pytest.raises(ValueError, match="label tables of the store and the data set"):
        StoredFrameTeacher(tmp_path / "t").check(summary, opened.labels)
    StoreWriter(tmp_path / "u", **_about(opened)).close()
    with pytest.raises(ValueError, match=r"the store has 0\.0% of 8 clips"):
        StoredFrameTeacher(tmp_path / "u").check(summary, opened.labels)


def test_a_store_of_the_other_kind_is_refused(opened, labels_as_logits, tmp_path):
    with pytest.raises(ValueError, match="logits of frames, and logits of clips are"):
        StoredTeacher(labels_as_logits)
    about = _about(opened, num_frames=None, frame_seconds=None)
    StoreWriter(tmp_path / "s", **about).close()
    with pytest.raises(ValueError, match="of clips, and .*with --frames True"):
        StoredFrameTeacher(tmp_path / "s")


def test_its_identity_is_that_of_its_logits(opened, labels_as_logits, tmp_path):
    """Wherever the store is; other logits are another teacher."""
    ids = [str(each) for each in opened.rows["video_id"]]
    kept = LogitsStore(labels_as_logits)
    logits = kept.lookup(ids).logits
    for name, change in (("same", 0.0), ("other", 1.0)):
        with StoreWriter(tmp_path / name, **_about(opened)) as writer:
            writer.append(ids, logits + change)
    found = [
        StoredFrameTeacher(path).identity(ids)
        for path in (labels_as_logits, tmp_path / "same", tmp_path / "other")
    ]
    assert found[0] == found[1] != found[2]
    assert found[0] != StoredFrameTeacher(labels_as_logits).identity(ids[:4])
