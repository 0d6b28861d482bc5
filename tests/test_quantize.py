"""Levels of int8 are found on sounds."""

import numpy as np
import pytest
import soundfile
from exported_models import content_of

from efficientat_plugin.data.decoding import decode
from efficientat_plugin.export.comparison_clips import read_clips
from efficientat_plugin.export.graph import Range
from efficientat_plugin.export.onnx_file import export_onnx
from efficientat_plugin.export.parity import check_parity
from efficientat_plugin.export.quantize import Recipe, observe
from efficientat_plugin.runtime import Tagger


@pytest.mark.parametrize("kind", ["mn", "dymn"])
def test_int8_computes_in_int8(kind, request, calibration_sounds, any_int8):
    source = request.getfixturevalue(kind)
    levels = observe(source, calibration_sounds).levels()
    content = content_of(source, "int8", "out", levels)
    assert content.count(b"QuantizeLinear") > 20
    check_parity(
        content, source, "int8", calibration_sounds
    )  # raises where it is far off


@pytest.mark.slow
def test_int8_of_the_published_student_names_what_it_named(shared, tmp_path):
    weights = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    clips = sorted((shared / "data" / "esc50" / "audio").glob("*.flac"))
    written = export_onnx(
        weights, tmp_path / "a.onnx", "int8", "out", calibration=clips[::8]
    )
    assert written.num_int8 == 40
    plain = export_onnx(weights, tmp_path / "b.onnx", front_end="out")
    assert written.num_bytes < 0.31 * plain.num_bytes
    waveforms = np.stack([decode(clip, 32000, 160000) for clip in clips[1::8]])
    names = [
        Tagger(path).score(waveforms).argmax(axis=1)
        for path in (written.path, plain.path)
    ]
    assert (names[0] == names[1]).mean() > 0.8


def test_sounds_that_tell_nothing_are_refused(mn, tmp_path):
    silent, empty = tmp_path / "silent.wav", tmp_path / "empty.wav"
    constant = tmp_path / "constant.wav"
    soundfile.write(silent, np.zeros(32000), 32000)
    empty.write_bytes(b"")
    soundfile.write(constant, np.full(32000, 0.5), 32000)
    with pytest.raises(ValueError, match="all of the 2 sounds are silent"):
        observe(mn, [silent, constant])
    with pytest.raises(ValueError, match="empty.wav cannot be used"):
        observe(mn, [empty])
    soundfile.write(empty, np.ones(1) / 2, 192000)  # nothing of it is left at 32 kHz
    with pytest.raises(ValueError, match="all of the 1 sounds are silent"):
        observe(mn, [empty])
    with pytest.raises(ValueError, match="no sounds were given"):
        read_clips(mn, [])


def test_zero_is_a_level_of_every_range():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)):
        scale, zero_point = Range(low, high).levels()
        assert 0 <= zero_point <= 255
        lowest, highest = (np.array([0, 255]) - float(zero_point)) * scale
        assert lowest <= max(low, 0) + scale and highest >= min(high, 0) - scale
        assert lowest <= 0 <= highest


def test_a_recipe_chooses_what_computes_in_int8(mn, calibration_sounds):
    seen = observe(mn, calibration_sounds[:1])
    assert not seen.levels(Recipe(is_int8=lambda site: False)).ranges
    whole = seen.levels(Recipe(percentile=100, clips_hard_swish=False)).ranges
    usual = seen.levels().ranges
    assert whole.keys() == usual.keys()
    assert all(
        whole[name].low <= usual[name].low and whole[name].high >= usual[name].high
        for name in whole
    )
