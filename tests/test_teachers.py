"""Teachers by name and from files: the table, downloads, strict import."""

import json

import pytest
import torch
from golden_vectors import GOLDEN

from efficientat_plugin.cost.complexity import count_parameters
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained import published_passt
from efficientat_plugin.pretrained.published_passt import (
    TEACHERS,
    PublishedTeacher,
    list_teachers,
)
from efficientat_plugin.pretrained.weights import load_published_state
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.teachers.load import load_teacher

SMALL = {"num_classes": 3, "embed_dim": 32, "depth": 2, "num_heads": 4}
SECOND = 32000  # samples
STATED = {"n_mels": 128, "hop_length": 320}  # which no file of one's own states


@pytest.fixture
def small_entry(monkeypatch):
    """A published teacher of a size that tests can afford."""
    entry = PublishedTeacher("small", "v1", "small-s16.pt", stride=16, **SMALL)
    monkeypatch.setitem(TEACHERS, "small", entry)
    return entry


@pytest.fixture
def release(monkeypatch, tmp_path):
    """The folder that published files are fetched from."""
    folder = tmp_path / "release"
    (folder / "v1").mkdir(parents=True)
    monkeypatch.delenv("EFFICIENTAT_BASE_URL", raising=False)
    monkeypatch.setattr(published_passt, "RELEASES", f"{folder.as_uri()}/")
    return folder


def build(entry, **options):
    return PaSST(**entry.options() | options)


def save(network, path):
    path.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def on_meta(entry):
    with torch.device("meta"):
        return PaSST(**entry.options())


# ---------------------------------------------------------------- the table


def test_every_published_teacher_is_listed_once():
    names = list_teachers()
    assert len(names) == len(set(names)) == 27
    assert len({entry.file for entry in TEACHERS.values()}) == len(names)
    assert all(entry.name == name for name, entry in TEACHERS.items())


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "passt_s_swa_p16_128_ap476",
            {
                "release": "v0.0.1-audioset",
                "file": "passt-s-f128-p16-s10-ap.476-swa.pt",
                "mean_ap": 47.6,
                "stride": 10,
            },
        ),
        ("passt_s_p16_s12_128_ap470", {"stride": 12, "mean_ap": 47.0}),
        ("passt_s_swa_p16_s16_128_ap473", {"stride": 16, "num_classes": 527}),
        (
            "passt_s_swa_f128_stfthop160_p16_s10_ap473",
            {"hop_length": 160, "num_frames": 2000, "stride": 10},
        ),
        ("passt-s-f128-30sec-p16-s10-ap473-swa", {"num_frames": 3000}),
        ("passt_s_kd_p16_128_ap486", {"file": "passt-s-kd-ap.486.pt", "stride": 10}),
        ("passt_l_kd_p16_128_ap47", {"depth": 7, "mean_ap": 47.0}),
        ("fsd50k-passt-s-n-f128-p16-s16-ap.642", {"stride": 16, "num_classes": 200}),
        ("openmic2008_passt_u_f128_p16_s10_ap85_swa", {"num_classes": 20}),
        ("esc50-passt-s-n-f128-p16-s10-fold1-acc.967", {"num_classes": 50}),
    ],
)
def test_entry_is_as_published(name, expected):
    entry = TEACHERS[name]
    assert {field: getattr(entry, field) for field in expected} == expected


@pytest.mark.parametrize(
    "name, file_bytes",
    [
        ("passt_s_swa_p16_128_ap476", 344_665_734),
        ("passt-s-f128-20sec-p16-s10-ap474-swa", 344_975_942),
        ("openmic-passt-s-f128-10sec-p16-s10-ap.85", 341_546_630),
        ("esc50-passt-s-n-f128-p16-s10-fold1-acc.967", 341_731_206),
    ],
)
def test_published_files_have_room_for_the_entries_weights(name, file_bytes):
    """Four bytes for each, and at most 64 kB of names and archive."""
    weight_bytes = 4 * sum(p.numel() for p in on_meta(TEACHERS[name]).parameters())
    assert 0 < file_bytes - weight_bytes < 2**16


def test_entries_weights_are_the_published_ones():
    golden = json.loads((GOLDEN / "passt.json").read_text())["passt_s"]
    state = on_meta(TEACHERS["passt_s_swa_p16_128_ap476"]).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == golden["keys"]


@pytest.mark.parametrize("name", list_teachers())
def test_teacher_takes_clips_as_long_as_it_was_trained_on(name):
    entry = TEACHERS[name]
    longer = {2000: 20, 3000: 30} if entry.hop_length == 320 else {}
    samples = longer.get(entry.num_frames, 10) * entry.sample_rate
    frames = LogMel(**entry.front_end()).num_frames(samples)
    assert 0 <= on_meta(entry).max_frames - frames < entry.stride + 16


# ---------------------------------------------------------------- downloads


def test_download_happens_once_and_is_all_of_the_file(small_entry, release, tmp_path):
    passt = build(small_entry).eval()
    path = save(passt, release / "v1" / small_entry.file)
    teacher = load_teacher("small", savedir=tmp_path / "new" / "folder")
    path.unlink()
    again = load_teacher("small", savedir=tmp_path / "new" / "folder")
    assert isinstance(teacher, WaveformStudent) and not teacher.student.training
    assert (teacher.sample_rate, teacher.num_classes) == (32000, 3)
    assert teacher.student.options == small_entry.options()
    filled = teacher.student.state_dict()
    assert all(torch.equal(filled[k], v) for k, v in passt.state_dict().items())
    waveform = torch.randn(2, SECOND)
    expected = passt(LogMel().eval()(waveform).unsqueeze(1)).logits
    assert torch.equal(teacher(waveform).logits, expected)
    assert torch.equal(again(waveform).logits, expected)
    heads = [p.requires_grad for p in teacher.student.head_dist.parameters()]
    others = [p.requires_grad for p in teacher.student.parameters()]
    assert heads == [False, False] and sum(others) == len(others) - 2


@pytest.mark.parametrize("given_by", ["argument", "environment"])
def test_mirror_has_all_files_in_one_folder(
    given_by, small_entry, release, tmp_path, monkeypatch
):
    save(build(small_entry), tmp_path / "mirror" / small_entry.file)
    options = {"base_url": (tmp_path / "mirror").as_uri()}
    if given_by == "environment":
        monkeypatch.setenv("EFFICIENTAT_BASE_URL", options.pop("base_url"))
    load_teacher("small", savedir=tmp_path / "cache", **options)
    assert (tmp_path / "cache" / small_entry.file).is_file()


def test_failed_download_leaves_nothing(small_entry, release, tmp_path):
    with pytest.raises(OSError, match="small-s16.pt"):
        load_teacher("small", savedir=tmp_path / "cache")
    (release / "v1" / small_entry.file).write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is no whole state dict; try again"):
        load_teacher("small", savedir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.pt"))


def test_cached_file_that_does_not_load_is_refused(small_entry, tmp_path):
    (tmp_path / small_entry.file).write_bytes(b"half")
    with pytest.raises(ValueError, match="small-s16.pt holds no .* delete it"):
        load_teacher("small", savedir=tmp_path)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"num_classes": 4}, r"differ in shape, as head.1.weight is \(4, 32\)"),
        ({"depth": 1}, "entries are missing, as blocks.1.norm1.weight"),
        ({"depth": 3}, "entries are unexpected, as blocks.2.norm1.weight"),
        ({"num_frames": 500}, "differ in shape, as time_new_pos_embed"),
    ],
)
def test_published_file_that_does_not_fit_is_refused_whole(
    options, text, small_entry, tmp_path
):
    save(build(small_entry, **options), tmp_path / small_entry.file)
    with pytest.raises(ValueError, match=text):
        load_teacher("small", savedir=tmp_path)


def test_unread_head_may_be_missing_and_nothing_else(small_entry, tmp_path):
    passt = build(small_entry).eval()
    state = passt.state_dict()
    del state["head_dist.weight"], state["head_dist.bias"]
    torch.save(state, tmp_path / small_entry.file)
    teacher = load_teacher("small", savedir=tmp_path)
    log_mel = torch.randn(1, 1, 128, 200)
    assert torch.equal(teacher.student(log_mel).logits, passt(log_mel).logits)
    del state["head.0.bias"]
    torch.save(state, tmp_path / small_entry.file)
    with pytest.raises(ValueError, match="1 entries are missing, as head.0.bias"):
        load_teacher("small", savedir=tmp_path)


# ---------------------------------------------------------------- files of one's own


@pytest.mark.parametrize(
    "file, given",
    [
        ("own.pt", {"time_stride": 12}),
        ("own.pt", {"clip_seconds": 10}),
        ("own-p16-s12-best.pt", {}),
    ],
)
@pytest.mark.parametrize("num_frames", [998, 1000])
def test_own_file_comes_back(file, given, num_frames, tmp_path):
    passt = PaSST(
        **SMALL,
        num_frames=num_frames,
        frequency_stride=12,
        time_stride=12,
        mlp_ratio=3,
    ).eval()
    path = save(passt, tmp_path / file)
    teacher = load_teacher(path, num_heads=4, **given, **STATED)
    assert teacher.student.front_end == {"sample_rate": 32000, **STATED}
    log_mel = torch.randn(1, 1, 128, 1000)
    assert torch.equal(teacher.student(log_mel).logits, passt(log_mel).logits)


@pytest.mark.parametrize("time_stride", [10, 12, 14, 16, 20])
@pytest.mark.parametrize("seconds", [5, 10, 20])
def test_clip_length_determines_the_stride(time_stride, seconds, tmp_path):
    passt = PaSST(**SMALL, num_frames=100 * seconds, time_stride=time_stride)
    path = save(passt, tmp_path / "own.pt")
    teacher = load_teacher(path, num_heads=4, clip_seconds=seconds, **STATED)
    assert teacher.student.time_stride == time_stride
    assert teacher.student.frequency_stride == 10
    assert teacher.student.max_frames == passt.max_frames


def test_overrides_reach_passt_and_its_front_end(small_entry, tmp_path):
    path = save(build(small_entry), tmp_path / small_entry.file)
    teacher = load_teacher(path, patchout_time=3, f_max=14000.0)
    assert teacher.student.patchout_time == 3
    assert teacher.log_mel.f_max == 14000.0
    assert teacher.student.frequency_stride == 16  # a published file by its name
    passt = PaSST(**SMALL, n_mels=64, num_frames=200)
    path = save(passt, tmp_path / "own.pt")
    teacher = load_teacher(path, n_mels=64, hop_length=320, time_stride=10, num_heads=4)
    assert teacher(torch.randn(1, SECOND)).logits.shape == (1, 3)


@pytest.mark.parametrize(
    "given, text",
    [
        ({"num_heads": 4}, "99 time positions, which do not .*pass time_stride"),
        ({"time_stride": 10}, "embed_dim=32, .*pass num_heads"),
        ({"num_heads": 4, "clip_seconds": 3}, "gives 300 frames, .* match 99"),
        (
            {"num_heads": 4, "time_stride": 10, "n_mels": 64},
            r"n_mels=64 and 12 frequency positions match the strides \[\]",
        ),
        (
            {"num_heads": 4, "time_stride": 10, "frequency_stride": 12},
            "does not fit the student: .*freq_new_pos_embed",
        ),
        ({"num_heads": 4, "time_strid": 10}, "time_strid is not .* time_stride"),
        ({"gain": 10}, "gain is not an option of PaSST or LogMel; see"),
    ],
)
def test_a_missing_option_of_a_file_is_asked_for(given, text, tmp_path):
    path = save(PaSST(**SMALL), tmp_path / "own.pt")
    with pytest.raises(ValueError, match=text):
        load_teacher(path, **(STATED | given))


def test_half_a_state_dict_is_refused(tmp_path):
    state = PaSST(**SMALL).state_dict()
    del state["time_new_pos_embed"]
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="not a PaSST's: .* no time_new_pos_embed"):
        load_teacher(tmp_path / "own.pt", time_stride=10, **STATED)


# ---------------------------------------------------------------- students, and others


def test_students_can_teach(shared, tmp_path):
    teacher = load_teacher("mn04_as", savedir=shared / "checkpoints")
    assert isinstance(teacher, WaveformStudent) and not teacher.training
    assert teacher(torch.zeros(1, SECOND)).logits.shape == (1, 527)
    student = MN(num_classes=4, width=0.1).eval()
    own = load_teacher(save(student, tmp_path / "own.pt"), n_mels=128, hop_length=640)
    assert own.log_mel.hop_length == 640 and own.num_classes == 4


def test_class_layer_of_imagenet_does_not_teach():
    with pytest.raises(ValueError, match="mn04_im was trained on ImageNet"):
        load_teacher("mn04_im")


def test_teachers_of_all_kinds_make_an_ensemble(small_entry, tmp_path):
    save(build(small_entry), tmp_path / small_entry.file)
    path = save(MN(num_classes=3, width=0.1), tmp_path / "mn.pt")
    members = [load_teacher("small", savedir=tmp_path), load_teacher(path, **STATED)]
    waveform = torch.randn(2, SECOND)
    output = Ensemble(members).eval()(waveform)
    torch.testing.assert_close(
        output.logits, (members[0](waveform).logits + members[1](waveform).logits) / 2
    )


@pytest.mark.parametrize("source", ["such.pt", "no/such.pt", "/no/such/place"])
def test_missing_file_is_refused(source):
    with pytest.raises(FileNotFoundError, match="is neither file nor folder"):
        load_teacher(source)


@pytest.mark.parametrize(
    "name, text",
    [
        ("passt_s_swa_p16_128_ap467", "did you mean .*passt_s_swa_p16_128_ap476"),
        ("mn4_as", "did you mean .*mn04_as"),
        ("zzz", "'zzz' is neither a published teacher nor a file; list_teachers"),
    ],
)
def test_unknown_name_is_refused_with_near_ones(name, text):
    with pytest.raises(ValueError, match=text):
        load_teacher(name)


# ---------------------------------------------------------------- starting points


def test_training_starts_from_a_published_passt(small_entry, tmp_path):
    published = build(small_entry)
    state = published.state_dict() | {"head_dist.bias": torch.full((5,), 3.0)}
    torch.save(state, tmp_path / small_entry.file)  # its unread head has other classes
    student = build(small_entry, patchout_time=2).eval()
    assert load_published_state(student, "small", savedir=tmp_path) == []
    log_mel = torch.randn(1, 1, 128, 200)
    assert torch.equal(student(log_mel).logits, published.eval()(log_mel).logits)


def test_other_classes_keep_the_class_layer_of_a_passt(small_entry, tmp_path, caplog):
    published = build(small_entry)
    save(published, tmp_path / small_entry.file)
    student = build(small_entry, num_classes=7)
    before = student.head[1].weight.clone()
    kept = load_published_state(student, tmp_path / small_entry.file)
    assert kept == ["head.1.weight", "head.1.bias"]
    assert "small-s16.pt has 3 classes and the student 7" in caplog.text
    assert torch.equal(student.head[1].weight, before)
    assert torch.equal(student.head[0].weight, published.head[0].weight)
    assert torch.equal(
        student.blocks[1].mlp.fc1.weight, published.blocks[1].mlp.fc1.weight
    )


@pytest.mark.parametrize(
    "options, source, text",
    [
        ({"depth": 3}, "small", "small does not fit .* a PaSST of 3 blocks of 32"),
        ({"num_frames": 500}, "small", "num_frames=500 .*time_new_pos_embed"),
        ({}, "small2", "did you mean small"),
        ({}, "mn04_as", "'mn04_as' is neither a published "),
        ({}, "no/such.pt", "neither file nor folder"),
    ],
)
def test_what_a_passt_cannot_start_from_is_refused_whole(
    options, source, text, small_entry, tmp_path
):
    save(build(small_entry), tmp_path / small_entry.file)
    student = build(small_entry, **options)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises((OSError, ValueError), match=text):
        load_published_state(student, source, savedir=tmp_path)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_cnn_starts_as_ever(tmp_path):
    source, student = (MN(num_classes=3, width=0.1) for _ in range(2))
    assert load_published_state(student, save(source, tmp_path / "mn.pt")) == []
    assert torch.equal(student.features[0][0].weight, source.features[0][0].weight)


def test_passt_has_as_many_trainable_parameters_as_it_uses():
    passt = on_meta(TEACHERS["passt_s_swa_p16_128_ap476"])
    assert count_parameters(passt) == 85_748_495


@pytest.mark.parametrize("name", ["cls_token", "freq_new_pos_embed"])
@pytest.mark.parametrize("shape", [(), (1, 1, 0)])
def test_a_passt_of_no_width_is_refused(name, shape, tmp_path):
    state = PaSST(3, embed_dim=64, depth=1, num_heads=4).state_dict()
    torch.save(state | {name: torch.zeros(shape)}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match=f"not a PaSST's: {name} has"):
        load_teacher(tmp_path / "own.pt", clip_seconds=10, num_heads=4, **STATED)
