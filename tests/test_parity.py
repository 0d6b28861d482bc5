"""What is exported computes what PyTorch computes, in every runtime."""

import numpy as np
import onnx
import pytest
import torch
from exported_models import BACKENDS, NARROW, content_of, random_weights, source_of

from efficientat_plugin.export import parity
from efficientat_plugin.export.assembly import build_model
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.export.graph import Graph
from efficientat_plugin.export.log_mel import factors
from efficientat_plugin.export.networks import add_head, add_maps, add_module
from efficientat_plugin.export.parity import check_parity
from efficientat_plugin.export.quantize import Recipe, may_be_int8, observe
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student

FIXED_SECONDS = 0.64  # 64 frames


# Weights of these are random: see `random_weights`.
STUDENTS = {
    "mlp": lambda: MN(**NARROW),
    "linear": lambda: MN(**NARROW, head="linear"),
    "fully_convolutional": lambda: MN(**NARROW, head="fully_convolutional"),
    "attention_pooling": lambda: MN(**NARROW, head="multihead_attention_pooling"),
    "dilated": lambda: MN(**NARROW, dilated=True, reduced_tail=True),
    "strides": lambda: MN(**NARROW, strides=(2, 2, 1, 1)),
    "no_squeeze_excite": lambda: MN(**NARROW, se_dims="none"),
    "bands_too": lambda: MN(**NARROW, se_dims="cf", se_agg="avg"),
    "frames_too": lambda: MN(**NARROW, se_dims="tc", se_agg="min", n_frames=64),
    "added": lambda: MN(**NARROW, se_dims="fc", se_agg="add"),
    "dymn": lambda: DyMN(**NARROW),
    "dymn_replace_se": lambda: DyMN(
        **NARROW, dynamic_blocks="replace_se", temperature=3.0
    ),
    "dymn_static_convs": lambda: DyMN(**NARROW, use_dyconv=False, dyrelu_k=3),
    "dymn_static_relu": lambda: DyMN(**NARROW, use_dyrelu=False, dyconv_k=2),
    "dymn_no_gates": lambda: DyMN(
        **NARROW, use_coordinate_attention=False, head="fully_convolutional"
    ),
    "dymn_dilated": lambda: DyMN(**NARROW, dilated=True, head="linear", dyrelu_k=1),
}


@pytest.fixture(scope="module", params=STUDENTS)
def any_student(request):
    """Each student in turn, of clips that it can take."""
    seconds = FIXED_SECONDS if request.param == "frames_too" else 0.7
    torch.manual_seed(0)  # a module's fixtures come before the seed of a test
    student = random_weights(STUDENTS[request.param]())
    return source_of(student, clip_seconds=seconds)


def test_every_student_says_the_same_in_every_runtime(any_student):
    """Of one clip, of several, and of another length, where that may be."""
    content = content_of(any_student, front_end="out")
    found = check_parity(content, any_student, "fp32")
    assert found.backends == BACKENDS
    assert found.logits_decibels > 75


def test_every_student_says_nearly_the_same_in_fp16(any_student):
    found = check_parity(content_of(any_student, "fp16"), any_student, "fp16")
    assert found.logits_decibels > 30


def test_every_student_computes_in_int8(any_student, calibration_sounds, any_int8):
    """Near its end: further on, random weights make much of every rounding."""
    seen = observe(any_student, calibration_sounds[:2])
    last = [site for site in seen.sites if may_be_int8(site)][-6:]
    levels = seen.levels(Recipe(is_int8=lambda site: site in last))
    content = content_of(any_student, "int8", "in", levels)
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert kinds.count("QuantizeLinear") == 2 * len(last)
    found = check_parity(content, any_student, "int8", calibration_sounds[:2])
    assert found.backends == BACKENDS


@pytest.mark.parametrize(
    ("kind", "target"),
    [("mn", "multilabel"), ("mn", "multiclass"), ("dymn", "multilabel")],
)
def test_the_front_end_may_be_in_the_graph(kind, target, request):
    source = request.getfixturevalue(kind)
    source = source._replace(model=source.model._replace(target=target))
    found = check_parity(content_of(source), source, "fp32")
    assert found.logits_decibels > 75
    tagger = Tagger(content_of(source))
    total = tagger.score(np.zeros((1, 16000), np.float32)).sum()
    assert (total == pytest.approx(1)) == (target == "multiclass")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hop_length": 160},
        {"hop_length": 800, "n_mels": 40},
        {"sample_rate": 16000, "n_fft": 512, "win_length": 400, "f_max": 7000.0},
        {"win_length": 1024, "periodic_window": True, "n_mels": 64},
        {"n_fft": 600, "win_length": 501, "hop_length": 333, "n_mels": 32},
        {"log_floor_mode": "clamp", "log_floor": 1e-4, "f_min": 50.0},
    ],
    ids=str,
)
def test_a_front_end_of_any_settings_is_the_same_in_the_graph(settings):
    """In numpy, too: the file without front end gets its log-mel from there."""
    student = random_weights(MN(**NARROW))
    source = source_of(student, **settings)
    for front_end in ("in", "out"):
        found = check_parity(content_of(source, front_end=front_end), source, "fp32")
        assert found.probability_error < 5e-5


@pytest.mark.parametrize(
    ("precision", "front_end"),
    [("fp16", "out"), ("int8_weights", "in"), ("int8_weights", "out")],
)
@pytest.mark.parametrize("kind", ["mn", "dymn"])
def test_smaller_files_say_nearly_the_same(kind, precision, front_end, request):
    source = request.getfixturevalue(kind)
    content = content_of(source, precision, front_end)
    check_parity(content, source, precision)  # raises where it does not
    assert len(content) < len(content_of(source, "fp32", front_end))


@pytest.mark.parametrize("opset", [19, 21, 23, 26])
def test_every_opset_says_what_the_oldest_says(mn, calibration_sounds, opset):
    """In int8, which has the operators that changed the most."""
    levels = observe(mn, calibration_sounds[:1]).levels()
    clip = synthesised(20000, 32000)[None]
    _, model = build_model(mn, "int8", "in", opset, levels)
    found = Tagger(model.SerializeToString(), "onnxruntime").outputs(clip)
    expected = Tagger(content_of(mn, "int8", "in", levels)).outputs(clip)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8_weights", "int8"])
def test_what_is_not_finite_is_not_written(precision):
    bad = parity.Parity(np.nan, np.nan, np.nan, 0.0, 1, ("a",))
    with pytest.raises(ValueError, match="nothing was written"):
        parity.judge(bad, precision, "a")


@pytest.mark.parametrize("broken", BACKENDS)
def test_what_is_not_finite_in_one_runtime_is_not_written(mn, monkeypatch, broken):
    class HalfBroken(Tagger):
        def __init__(self, content, backend):
            super().__init__(content, backend)
            self.factor = np.float32(np.nan if backend == broken else 1)

        def outputs(self, waveforms):
            found = super().outputs(waveforms)
            return {name: value * self.factor for name, value in found.items()}

    monkeypatch.setattr(parity, "Tagger", HalfBroken)
    with pytest.raises(ValueError, match="nothing was written; report it"):
        check_parity(content_of(mn), mn, "fp32")


def test_clips_hardly_longer_than_a_transform_are_compared(mn):
    short = mn._replace(model=mn.model._replace(clip_seconds=0.02))
    assert check_parity(content_of(short), short, "fp32").num_sounds == 5


def test_students_and_parts_that_are_not_known_are_refused(mn):
    with pytest.raises(ValueError, match="export an MN or a DyMN"):
        add_maps(Student(3), Graph(), "x", 128)
    with pytest.raises(ValueError, match=r"features\.3 is a GELU"):
        add_module(torch.nn.GELU(), Graph(), "x", "features.3")
    with pytest.raises(ValueError, match="a head of type GELU"):
        add_head(torch.nn.GELU(), Graph(), "x", "y")


@pytest.mark.parametrize("n_fft", [16, 400, 512, 600, 1024, 1102])
def test_factors_multiply_to_the_transform(n_fft):
    rows, columns = factors(n_fft)
    assert rows * columns == n_fft and rows <= columns
