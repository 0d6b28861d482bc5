"""Reference vectors and constants for ports are enough to write one."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from efficientat_plugin.export.golden import front_end_constants, golden_vectors, header


def test_golden_vectors_follow_from_the_constants_alone(mn):
    """A port that has the JSON and nothing else, in float64."""
    golden = golden_vectors(mn)
    constants = json.loads(json.dumps(front_end_constants(mn.log_mel)))
    sound = golden["waveform"][0].astype(np.float64)
    sound = sound[1:] - constants["pre_emphasis"] * sound[:-1]
    n_fft, hop = constants["n_fft"], constants["hop_length"]
    sound = np.pad(sound, n_fft // 2, mode="reflect")
    window = np.zeros(n_fft)
    left = (n_fft - constants["win_length"]) // 2
    window[left : left + constants["win_length"]] = constants["window"]
    num_frames = golden["log_mel"].shape[2]
    frames = np.stack([sound[t * hop :][:n_fft] for t in range(num_frames)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    weights = iter(constants["band_weights"])
    for band, (start, length) in enumerate(
        zip(constants["band_start"], constants["band_length"], strict=True)
    ):
        row = np.array([next(weights) for _ in range(length)])
        mel = power[:, start : start + length] @ row
        log_mel = (np.log(mel + 1e-5) + 4.5) / 5
        np.testing.assert_allclose(log_mel, golden["log_mel"][0, band], atol=1e-4)
    assert next(weights, None) is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_header_compiles_and_has_the_same_numbers(mn, tmp_path):
    constants = front_end_constants(mn.log_mel)
    (tmp_path / "front_end.h").write_text(header(constants))
    (tmp_path / "a.c").write_text(
        '#include <stdio.h>\n#include "front_end.h"\nint main(void) {\n'
        "  double total = 0;\n"
        "  for (int i = 0; i < EFFICIENTAT_WIN_LENGTH; i++)\n"
        "    total += EFFICIENTAT_WINDOW[i];\n"
        '  printf("%d %.6f %.6g", EFFICIENTAT_BAND_START[5], total,'
        " EFFICIENTAT_LOG_FLOOR);\n  return 0;\n}\n"
    )
    build = ["cc", "-std=c99", "-Wall", "-Werror", "-Wno-unused-variable", "-o", "a"]
    subprocess.run([*build, "a.c"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "a"], capture_output=True, text=True).stdout
    start, total, floor = printed.split()
    assert int(start) == constants["band_start"][5]
    assert float(total) == pytest.approx(sum(constants["window"]), abs=1e-4)
    assert float(floor) == pytest.approx(1e-5)
