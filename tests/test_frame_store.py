"""Stores of frames: round trips, dumps that are resumed, and what verify finds."""

import numpy as np
import pytest
import torch
from small_rows import LABELS, SAMPLE_RATE

from efficientat_plugin.contracts import FrameOutput
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.frame_passt import FramePaSST
from efficientat_plugin.students.mn import MN
from efficientat_plugin.teachers.bring_your_own import resampled
from efficientat_plugin.teachers.store.dump import fill_store
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import verify
from efficientat_plugin.teachers.store.writer import StoreWriter

ABOUT = {"teacher": "fmn", "labels_sha256": "1" * 64, "num_classes": 3}
ABOUT |= {"sample_rate": 16000, "clip_seconds": 0.2}
FRAMES = {"num_frames": 5, "frame_seconds": 0.04}
DUMPED = {"clip_seconds": 0.5, "batch_size": 2, "of_frames": True}


def _frames(clip_ids, classes=3, frames=5):
    """Logits that a clip's id determines: what is read shows whose it is."""
    seeds = [sum(i.encode()) for i in clip_ids]
    rows = [np.random.default_rng(s).normal(0, 3, (classes, frames)) for s in seeds]
    return np.stack(rows).astype(np.float16)


def _write(path, clip_ids, **about):
    with StoreWriter(path, **(ABOUT | FRAMES | about)) as writer:
        writer.append(clip_ids, _frames(clip_ids))
    return path


def _contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


# --- Round trips -------------------------------------------------------------------


@pytest.mark.parametrize("has_weak", [True, False])
def test_frames_come_back_in_float16(tmp_path, has_weak):
    strong = torch.randn(4, 3, 5) * 10
    strong[0, 0, 0] = 1e6
    weak = torch.randn(4, 3) if has_weak else None
    with StoreWriter(tmp_path / "s", **ABOUT, **FRAMES, has_weak=has_weak) as writer:
        writer.append(list("db"), strong[:2], None, None if weak is None else weak[:2])
        writer.append(list("ca"), strong[2:], None, None if weak is None else weak[2:])
    store = LogitsStore(tmp_path / "s")
    target = store.lookup(list("abxcd"))
    assert target.known.tolist() == [True, True, False, True, True]
    kept = strong.clamp(-65504, 65504).half().float()
    assert torch.equal(target.logits[[4, 1, 3, 0]], kept)
    assert not target.logits[2].any()
    found = store.weak_logits(np.array([3, 0]))
    assert (found is None) is not has_weak
    if weak is not None:
        assert np.array_equal(found, weak[[3, 0]].half().float())
    largest = store.clip_logits(np.array([2, 1]))
    assert np.array_equal(largest, kept[[2, 1]].amax(dim=2))


def test_a_clip_takes_two_bytes_a_number(tmp_path):
    path = _write(tmp_path / "s", list("ab"))
    assert (path / "logits.f16").stat().st_size == 2 * 3 * 5 * 2


@pytest.mark.parametrize(
    ("logits", "weak", "text"),
    [
        (np.zeros((1, 3)), None, r"shape \[1, 3\] .* shape \[1, 3, 5\].*a frame on"),
        (np.zeros((1, 5, 3)), None, r"shape \[1, 5, 3\]"),
        (np.full((1, 3, 5), np.nan), None, "row 0 of the logits, clip 'a', is not fin"),
        (np.zeros((1, 3, 5)), np.zeros((1, 3)), "has_weak=False of .*or with none"),
    ],
)
def test_what_are_no_frames_is_refused(tmp_path, logits, weak, text):
    with (
        StoreWriter(tmp_path / "s", **ABOUT, **FRAMES) as writer,
        pytest.raises(ValueError, match=text),
    ):
        writer.append(["a"], logits, None, weak)
    assert len(LogitsStore(tmp_path / "s")) == 0


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"num_frames": None}, "frame_seconds=0.04 and has_weak=False are of frames"),
        ({"frame_seconds": None}, "frame_seconds=None must be above 0"),
        ({"num_frames": 0}, "num_frames=0 must be an int of 1 or more"),
        ({"num_frames": 10_000_000}, "more than 16777216 numbers a clip"),
        ({"frame_seconds": 0.02}, "frame_seconds 0.04 there, 0.02 here"),
        ({"num_frames": 10}, "num_frames 5 there, 10 here"),
        ({"has_weak": True}, "has_weak false there, true here"),
        ({"num_frames": None, "frame_seconds": None}, "num_frames 5 there, not set"),
    ],
)
def test_other_frames_are_refused(tmp_path, other, text):
    path = _write(tmp_path / "s", ["a"])
    before = _contents(path)
    with pytest.raises(ValueError, match=text):
        StoreWriter(path, **(ABOUT | FRAMES | other))
    assert _contents(path) == before


# --- Dumps -------------------------------------------------------------------------


def _member(network=None, **front_end):
    options = {"sample_rate": 16000, "hop_length": 160, "f_max": 7000.0, "n_mels": 64}
    torch.manual_seed(len(front_end))
    network = network or FrameMN(3, width=0.1)
    return WaveformStudent(LogMel(**(options | front_end)), network).eval()


def _small_passt():
    return FramePaSST(3, n_mels=64, num_frames=100, embed_dim=32, depth=1, num_heads=2)


TEACHERS = {
    "one": lambda: [_member()],
    "two": lambda: [_member(), _member(f_min=50.0)],
    "transformer": lambda: [_member(_small_passt()), _member()],
    "resampled": lambda: [resampled(_member(), SAMPLE_RATE)],
}


@pytest.fixture(params=TEACHERS)
def teacher(request):
    return Ensemble(TEACHERS[request.param](), None).eval()


def _fill(path, teacher, rows, **options):
    fill_store(path, "fmn", teacher, LABELS, rows, **(DUMPED | options))


def test_a_dump_stores_what_each_teacher_computes(rows, tmp_path, teacher):
    _fill(tmp_path / "s", teacher, rows)
    store = LogitsStore(tmp_path / "s")
    manifest = store.manifest
    assert (manifest.num_frames, manifest.has_weak, len(store)) == (13, True, 8)
    assert manifest.frame_seconds == pytest.approx(0.04, abs=1e-9)
    reader = ClipReader(LABELS, 0.5, teacher.sample_rate)
    clips = [reader.read(row) for row in rows]
    with torch.inference_mode():
        output = teacher(torch.stack([clip.waveform for clip in clips]))
    assert isinstance(output, FrameOutput)
    places = store.rows([clip.clip_id for clip in clips])
    scale = output.strong.abs().max()
    difference = store.logits(places) - output.strong.numpy()
    assert np.abs(difference).max() < 1e-3 * scale
    weak = store.weak_logits(places) - output.weak.numpy()
    assert np.abs(weak).max() < 1e-3 * output.weak.abs().max()


def test_an_ensemble_of_frames_averages_them():
    members = TEACHERS["two"]()
    waveform = torch.randn(2, 8000)
    with torch.no_grad():
        one, two = (member(waveform) for member in members)
        both = Ensemble(members, [3, 1]).eval()(waveform)
        mixed = Ensemble([members[0], _member(MN(3, width=0.1))]).eval()(waveform)
    assert torch.allclose(both.strong, (3 * one.strong + two.strong) / 4, atol=1e-6)
    assert torch.allclose(both.weak, (3 * one.weak + two.weak) / 4, atol=1e-6)
    assert both.embedding.shape == (2, 13, 2 * one.embedding.shape[2])
    assert not isinstance(mixed, FrameOutput) and mixed.logits.shape == (2, 3)


def test_an_interrupted_dump_ends_like_an_undisturbed_one(rows, tmp_path):
    teacher = Ensemble([_member()]).eval()
    _fill(tmp_path / "whole", teacher, rows)
    append, calls = StoreWriter.append, []

    def stop(self, *arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(append(self, *arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            _fill(tmp_path / "s", teacher, rows)
    assert len(LogitsStore(tmp_path / "s")) == 4
    _fill(tmp_path / "s", teacher, rows)
    assert _contents(tmp_path / "s") == _contents(tmp_path / "whole")


def test_a_changed_teacher_is_refused(rows, tmp_path):
    teacher = Ensemble([_member()]).eval()
    _fill(tmp_path / "s", teacher, rows.select([0, 1]))
    teacher.sha256 = Ensemble([_member()]).sha256  # its code has changed instead
    teacher.members[0].student.strong_head.bias.data += 1
    with pytest.raises(ValueError, match="differ from what the teacher computes now"):
        _fill(tmp_path / "s", teacher, rows)


NO_FRAMES = {
    "clips": lambda: [_member(MN(3, width=0.1))],
    "one of clips": lambda: [_member(), _member(MN(3, width=0.1))],
    "other frames": lambda: [_member(), _member(hop_length=320)],
}


@pytest.mark.parametrize("members", NO_FRAMES.values(), ids=NO_FRAMES)
def test_a_teacher_of_other_frames_is_refused(rows, tmp_path, members):
    text = "does not score frames, or not|have .classes, frames. of"
    with pytest.raises(ValueError, match=text):
        _fill(tmp_path / "s", Ensemble(members()).eval(), rows)
    assert not (tmp_path / "s").exists()


# --- Verify ------------------------------------------------------------------------

CLASSES = 10


def _labelled(count=400):
    draws = np.random.default_rng(0)
    return [(f"c{n}", [int(draws.integers(CLASSES))]) for n in range(count)]


def _good(clips):
    """A class sounds in a few frames: its largest logit shows it, its mean does not."""
    draws = np.random.default_rng(1)
    logits = draws.normal(-4, 1, (len(clips), CLASSES, 50))
    for row, (_, (label,)) in zip(logits, clips, strict=True):
        start = draws.integers(45)
        row[label, start : start + 3] += 8
    return logits


def _verified(path, clips, logits):
    about = ABOUT | {"num_classes": CLASSES, "num_frames": 50, "frame_seconds": 0.04}
    with StoreWriter(path, **about) as writer:
        writer.append([clip_id for clip_id, _ in clips], logits)
    return verify(LogitsStore(path), clips, num_classes=CLASSES)


def test_verify_names_the_frames_of_a_good_store(tmp_path):
    clips = _labelled()
    report = _verified(tmp_path / "s", clips, _good(clips))
    report.raise_if_bad()
    assert report.pairs_right > 0.95
    begun = "ok: 100.0% of 400 clips stored, 10 classes in 50 frames of 0.04 s, label"
    assert str(report).startswith(begun)


def test_verify_finds_rows_of_other_clips(tmp_path):
    clips = _labelled()
    report = _verified(tmp_path / "s", clips, np.roll(_good(clips), 1, axis=0))
    with pytest.raises(ValueError, match="seem to be of other clips"):
        report.raise_if_bad()


@pytest.mark.parametrize("labelled", [True, False])
def test_verify_finds_probabilities(tmp_path, labelled):
    clips = _labelled()
    probabilities = 1 / (1 + np.exp(-_good(clips)))
    if not labelled:
        clips = [(name, []) for name, _ in clips]
    report = _verified(tmp_path / "s", clips, probabilities)
    with pytest.raises(ValueError, match="so they are probabilities, not logits"):
        report.raise_if_bad()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("labelled", [True, False])
def test_verify_names_rows_that_are_not_finite(tmp_path, number, labelled):
    clips = _labelled(40)
    _verified(tmp_path / "s", clips, _good(clips))
    file = tmp_path / "s" / "logits.f16"
    stored = np.fromfile(file, "<f2").reshape(40, CLASSES, 50)
    stored[7, 3, 20] = number  # a copy that went wrong
    stored.tofile(file)
    if not labelled:
        clips = [(name, []) for name, _ in clips]
    with pytest.raises(ValueError, match="1 of the rows read are not finite, .* of c7"):
        verify(LogitsStore(tmp_path / "s"), clips).raise_if_bad()
