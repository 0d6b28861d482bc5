"""Complexity: the published numbers, laws, and that measuring changes nothing."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from efficientat_plugin.cost.complexity import (
    Complexity,
    count_macs,
    count_parameters,
    count_state,
    measure,
    measure_latency,
    measure_once,
    peak_memory,
    receptive_field,
)
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.published import published
from efficientat_plugin.pretrained.published_passt import TEACHERS
from efficientat_plugin.pretrained.weights import FAMILIES
from efficientat_plugin.students.blocks import SqueezeExcite
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.dynamic import ContextGenerator
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \w+ \| .* M \| .*", MODELS, re.M)  # of its table of students


@functools.cache
def on_meta(build, **options):
    """Static figures need shapes alone: no weights are made, nothing is computed."""
    with torch.device("meta"):
        return build(**options)


def student_of(name):
    entry = published(name)
    return on_meta(FAMILIES[entry.family], **entry.options())


@pytest.mark.parametrize(
    "name, parameters, gigamacs",  # MACs to the digits that are published
    [
        ("mn01_as", 123_783, "0.018"),
        ("mn02_as", 324_695, "0.040"),
        ("mn04_as", 983_599, "0.111"),
        ("mn05_as", 1_431_239, "0.160"),
        ("mn10_as", 4_876_831, "0.541"),
        ("mn20_as", 17_909_287, "2.059"),
        ("mn30_as", 39_086_367, "4.555"),
        ("mn40_as", 68_427_303, "8.028"),
        ("mn10_as_hop_5", 4_876_831, "1.071"),
        ("mn10_as_hop_15", 4_876_831, "0.361"),
        ("mn10_as_hop_20", 4_876_831, "0.274"),
        ("mn10_as_hop_25", 4_876_831, "0.219"),
        ("mn10_as_mels_40", 4_876_831, "0.208"),
        ("mn10_as_mels_64", 4_876_831, "0.272"),
        ("mn10_as_mels_256", 4_876_831, "1.079"),
        ("mn10_as_fc", 3_478_638, "0.604"),
        ("mn10_as_fc_s2221", 3_478_638, "1.148"),
        ("mn10_as_fc_s2211", 3_478_638, "3.978"),
        ("dymn04_as", 1_961_239, "0.12"),
        ("dymn10_as", 10_548_479, "0.58"),
        ("dymn20_as", 39_966_143, "2.2"),
    ],
)
def test_parameters_and_macs_are_as_published(name, parameters, gigamacs):
    entry, student = published(name), student_of(name)
    assert count_parameters(student) == parameters
    n_frames = 1 + (10 * entry.sample_rate - 1) // entry.hop_length
    macs = count_macs(student, entry.n_mels, n_frames)
    digits = len(gigamacs.split(".")[1])
    assert f"{macs / 1e9:.{digits}f}" == gigamacs


def test_parameters_with_attention_are_as_published():
    student = on_meta(MN, head="multihead_attention_pooling")
    assert count_parameters(student) == 7_023_244


@pytest.mark.parametrize(
    "name, state_values",
    [
        ("dymn04_as", 1_972_063),
        ("dymn10_as", 10_575_063),
        ("dymn20_as", 40_019_191),
    ],
)
def test_dymn_with_statistics_is_as_published(name, state_values):
    assert count_state(student_of(name)) == state_values


def test_parameters_are_those_that_train():
    student = MN(width=0.1)
    student.features.requires_grad_(False)
    assert count_parameters(student) == count_parameters(student.classifier)
    assert count_state(student) > count_parameters(student)


@pytest.mark.parametrize("is_called", [True, False])
def test_macs_count_the_biases_of_layers(is_called):
    """DyMN reads the weights of some layers instead of calling them."""

    class Linears(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.linear = nn.Linear(5, 7, bias=bias)

        def forward(self, clip):  # four bands are four products of a clip
            if is_called:
                return self.linear(clip)
            return nn.functional.linear(clip, self.linear.weight, self.linear.bias)

    assert count_macs(Linears(bias=False), 4, 5) == 4 * 5 * 7
    assert count_macs(Linears(bias=True), 4, 5) == 4 * 5 * 7 + 4 * 7


def test_the_docs_have_a_table_of_students():
    assert len(ROWS) > 10


@pytest.mark.slow
@pytest.mark.parametrize("line", ROWS, ids=lambda line: line.split()[1])
def test_the_docs_have_what_the_tool_prints(line):
    path = REPOSITORY / "benchmarks" / "students_table.py"
    spec = importlib.util.spec_from_file_location("students_table", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    name = line.split(" | ")[0].removeprefix("| ")
    entry = TEACHERS[name] if name in TEACHERS else published(name)
    assert "| " + " | ".join(tool.row(entry, rounds=0)) + " |" == line


class OfManyClips(nn.Module):
    """A student that gets its clip three times."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, log_mel):
        return self.student(log_mel.expand(3, -1, -1, -1))


def test_complexity_is_that_of_each_clip_of_a_batch():
    dynamic = on_meta(DyMN, width=0.1)
    macs = count_macs(dynamic, 64, 100)
    assert count_macs(OfManyClips(dynamic), 64, 100) == 3 * macs
    static = on_meta(MN, width=0.1)
    memory = peak_memory(static, 64, 100)
    assert peak_memory(OfManyClips(static), 64, 100) == 3 * memory


@pytest.mark.parametrize(
    "name, options, values",
    [
        # Block 2, 16 channels expanded to 64, of 64 x 500 each
        ("mn10_as", {}, (16 + 64) * 64 * 500),
        ("dymn10_as", {}, (16 + 64) * 64 * 500),
        # The last block, in and out of 960 channels, and the shortcut of 160
        ("mn10_as", {"strides": (1, 1, 1, 1)}, (960 + 960 + 160) * 64 * 500),
    ],
)
def test_peak_memory_is_that_of_hand_calculation(name, options, values):
    entry = published(name)
    student = on_meta(FAMILIES[entry.family], **entry.options() | options)
    assert peak_memory(student, bytes_per_value=1) == values
    assert peak_memory(student) == 4 * values


def field_by_gradient(student, size):
    """Extents of what moves one cell of the maps, global context held still."""

    def hold_still(module, args, result):
        if isinstance(result, tuple):
            return type(result)(*(each.detach() for each in result))
        return result.detach()

    for part in student.modules():
        if isinstance(part, SqueezeExcite | ContextGenerator):
            part.register_forward_hook(hold_still)
    for parameter in student.parameters():
        parameter.data.abs_()  # no path is blocked, and none cancels another
    log_mel = torch.ones(1, 1, size, size, requires_grad=True)
    maps = student.eval().maps(log_mel)
    middle = maps.shape[-1] // 2
    maps[0, 0, middle, middle].backward()
    bands, frames = log_mel.grad[0, 0].nonzero(as_tuple=True)
    return (
        int(bands.max() - bands.min()) + 1,
        int(frames.max() - frames.min()) + 1,
    )


@pytest.mark.parametrize(
    "build, options, size",
    [
        (MN, {"strides": (1, 1, 1, 1)}, 100),
        (MN, {"strides": (2, 1, 1, 2), "dilated": True}, 340),
        (MN, {"strides": (1, 1, 1, 1), "se_dims": "none"}, 100),
        (DyMN, {"strides": (1, 1, 1, 1)}, 100),
        (DyMN, {"strides": (1, 1, 2, 1), "dynamic_blocks": "replace_se"}, 160),
    ],
)
def test_receptive_field_is_where_gradients_reach(build, options, size):
    torch.manual_seed(0)
    student = build(width=0.1, num_classes=2, **options)
    field = receptive_field(student)
    assert (field.size, field.size) == field_by_gradient(student, size)
    assert field.size < size  # else the clip's edges would cut both


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (595, 32)),
        ({"strides": (2, 2, 2, 1)}, (467, 16)),
        ({"strides": (2, 2, 2, 1), "dilated": True}, (659, 16)),
        ({"dilated": True}, (659, 16)),  # takes the place of a stride
    ],
)
def test_receptive_field_grows_with_strides_and_dilation(options, expected):
    assert receptive_field(on_meta(MN, width=0.1, **options)) == expected
    assert receptive_field(on_meta(DyMN, width=0.1, **options)) == expected


def test_receptive_field_in_time_has_hops_and_a_window():
    log_mel = LogMel()
    field = receptive_field(on_meta(MN, width=0.1))
    assert field.milliseconds(log_mel) == 594 * 10 + 25


def test_measuring_leaves_the_student_as_it_was():
    student = DyMN(width=0.1, num_classes=2).train()
    student.layers[0].eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = measure(student, n_mels=8, n_frames=9, rounds=2)
    assert isinstance(result, Complexity)
    assert result.parameters == count_parameters(student)
    assert result.macs > 0 and result.milliseconds_per_clip > 0
    assert student.training and not student.layers[0].training
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    for part in student.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks


def test_complexity_reads_as_a_list_with_units():
    result = measure(MN(width=0.1), n_mels=40, n_frames=50, rounds=1)
    lines = str(result).splitlines()
    assert len(lines) == 7
    assert lines[0].split(":")[1].strip() == "123,783"
    assert lines[4].endswith("595 mel frames")
    assert result.describe(LogMel()).splitlines()[4].endswith("595 mel frames, 5965 ms")


def test_a_student_of_one_shape_is_measured_once():
    """Trained or frozen in between; another clip, or a layer more, is another shape."""
    student = MN(width=0.1)
    first = measure_once(student, 40, 50)
    with torch.no_grad():
        for part in student.parameters():
            part += 1
    assert measure_once(student, 40, 50) == first
    student.classifier.requires_grad_(False)
    frozen = measure_once(student, 40, 50)
    assert frozen == first._replace(parameters=count_parameters(student)) != first
    assert measure_once(student, 40, 60).macs > first.macs
    student.more = nn.Linear(2, 2)
    assert measure_once(student, 40, 50).state_values == first.state_values + 6
    assert measure_once(MN(width=0.1, num_classes=3), 40, 50).macs < first.macs


@pytest.mark.parametrize("count", [count_macs, peak_memory, measure_latency])
def test_an_empty_clip_is_refused(count):
    with pytest.raises(ValueError, match="n_frames=0 must be 1 or more"):
        count(MN(width=0.1), n_frames=0)


def test_a_clip_that_the_student_refuses_is_refused():
    student = on_meta(MN, width=0.1, se_dims="t", n_frames=50)
    for count in (count_macs, peak_memory):
        with pytest.raises(ValueError, match="log_mel has 40 frames"):
            count(student, 40, 40)


def test_latency_refuses_no_rounds():
    with pytest.raises(ValueError, match="rounds=0"):
        measure_latency(MN(width=0.1), rounds=0)


def test_latency_refuses_a_student_without_numbers():
    with pytest.raises(ValueError, match="meta device, where nothing is computed"):
        measure_latency(on_meta(MN, width=0.1))


def test_peak_memory_refuses_values_without_bytes():
    with pytest.raises(ValueError, match="bytes_per_value=0 must be 1 or more"):
        peak_memory(MN(width=0.1), bytes_per_value=0)


def test_a_network_without_stages_has_no_receptive_field():
    conv = nn.Conv2d(1, 1, 3)
    result = measure(conv, 8, 9, rounds=1)
    assert result.receptive_field is None
    assert "receptive field" not in str(result)
    with pytest.raises(ValueError, match="has no stages of convolutions"):
        receptive_field(Student(3))
