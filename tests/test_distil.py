"""Any teacher, a folder of sound without labels, and a small student of both."""

import json

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import arguments_of, run_recipe

from efficientat_plugin.pretrained.folder import read_model_folder
from efficientat_plugin.tagging.torch_tagger import AudioTagger

RATE = 16000
TEACHER = '''
"""Predicts how high a sound is, at a rate of its own."""

import torch


class Ear(torch.nn.Module):
    sample_rate = 16000
    labels = ["low", "middle", "high"]

    def forward(self, waveform):
        power = torch.fft.rfft(waveform).abs().square()
        size = power.shape[1]
        bands = torch.tensor_split(power, [size // 16, size // 4], 1)
        loud = torch.stack([band.sum(dim=1) for band in bands], dim=1)
        return 8 * loud / loud.sum(dim=1, keepdim=True) - 4


def make():
    return Ear()


def too_long():
    class Fussy(Ear):
        def forward(self, waveform):
            seconds = waveform.shape[1] / self.sample_rate
            if seconds < 10:
                raise ValueError(f"{seconds:g} s are too short; I take 10 s")

    return Fussy()
'''
SMALL = {
    "clip_seconds": 0.5,
    "width": 0.1,
    "prior": 0.3,
    "batch_norm_momentum": 0.5,
    "batch_size": 8,
    "num_workers": 0,
    "lr": 0.01,
    "mixup": None,
    "waveform_mix": None,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with sounds, a teacher, and what distilling it came to."""
    place = tmp_path_factory.mktemp("distil")
    (place / "ear.py").write_text(TEACHER)
    (place / "sounds").mkdir()
    rng = np.random.default_rng(0)
    time = np.arange(RATE // 2) / RATE
    for number in range(48):
        tone = np.sin(2 * np.pi * (200.0, 1200.0, 5000.0)[number % 3] * time)
        sound = 0.3 * tone + 0.01 * rng.standard_normal(len(time))
        soundfile.write(place / "sounds" / f"{number}.wav", sound, RATE)
    (place / "sounds" / "notes.txt").write_text("not a sound")
    (place / "sounds" / "broken.wav").write_text("not a sound either")
    return place


def _call(place, output, **more):
    options = {"dataset": "sounds", "teacher": "ear:make", "number_of_epochs": 12}
    options |= SMALL | {"output_folder": output} | more
    return arguments_of("distil", **options)


@pytest.mark.slow
def test_a_student_comes_to_say_what_its_teacher_says(place):
    output = place / "run"
    # With this seed, the clip that cannot be read is one of five to test on.
    call = _call(place, output, seed=25)
    printed = run_recipe("distil", [call], place)
    assert "agreement with the teacher, the first 0.5 s of 4 clips" in printed
    assert "torchvision" not in printed
    assert "49 clips" in printed and "Before: explained" in printed
    log = (output / "train_log.txt").read_text()
    assert "train loss: " in log and "valid loss: " not in log  # nothing is labelled
    scores = json.loads((output / "scores.json").read_text())
    assert scores["agreement"] == 1.0 and scores["explained"] > 0.5
    before = float(printed.split("Before: explained ")[1].split(",")[0])
    assert before < 0.2
    assert read_model_folder(output / "model").labels.names == ("low", "middle", "high")
    tagger = AudioTagger.from_hparams(str(output / "model"), run_opts={"device": "cpu"})
    assert tagger.tag(place / "sounds" / "2.wav", top_k=1)[0].name == "high"
    # The same command ends as it had, and asks the teacher nothing.
    larger = {"width": 0.2, "teacher_logits": "run/teacher_logits", "seed": 25}
    calls = [call, _call(place, "larger", number_of_epochs=1, **larger)]
    again = run_recipe("distil", calls, place)
    assert again.count("48 of 49 clips are stored already") == 2
    assert again.count("Before:") == 1  # of the larger one alone
    assert json.loads((output / "scores.json").read_text()) == scores
    (place / "ear.py").write_text(TEACHER.replace("return 8 *", "return 80 *"))
    calls = [call, _call(place, output, seed=25, n_mels=64)]
    changed = run_recipe("distil", calls, place, expect=1)
    (place / "ear.py").write_text(TEACHER)
    assert "holds another run (n_mels 128 there, 64 here); name another" in changed
    assert "differ from what the teacher computes now, e.g. for clip '0'" in changed


REFUSALS = {
    "--teacher is needed; see the head of": {"teacher": None},
    "form=sounds needs a folder, but nowhere is not": {"dataset": "nowhere"},
    "the teacher ear:nobody cannot be imported": {"teacher": "ear:nobody"},
    "0.5 s are too short; I take 10 s": {"teacher": "ear:too_long"},
    "number_of_epochs=0 trains nothing; give 1 or more": {"number_of_epochs": 0},
    "--test_only works in audioset_kd.py only; runs here end": {"test_only": True},
    "prior=2.0 must be between 0 and 1": {"prior": 2},
}


@pytest.mark.slow
def test_what_cannot_be_distilled_is_refused_in_a_sentence(place):
    output = place / "refused"
    calls = [_call(place, output, **options) for options in REFUSALS.values()]
    printed = run_recipe("distil", calls, place, expect=1)
    assert [message for message in REFUSALS if message not in printed] == []
    assert "Traceback" not in printed and not (output / "model").exists()


@pytest.mark.slow
def test_labels_take_part_where_there_are_any(place):
    lines = [f"sounds/{n}.wav,{('Low', 'middle', 'high')[n % 3]}" for n in range(48)]
    lines[0] = "sounds/0.wav,noise"
    (place / "clips.csv").write_text("\n".join(["file,label", *lines]))
    options = {"dataset": "clips.csv", "form": "auto"}
    output = place / "labelled"
    call = _call(place, output, **options, kd_weight=0.5)
    printed = run_recipe("distil", [call], place)
    metrics = json.loads((output / "model" / "metrics.json").read_text())
    assert len(metrics) == 2 and "labels, " in printed
    scores = json.loads((place / "labelled" / "scores.json").read_text())
    assert "agreement" in scores and scores["labels"]["mAP"] >= 0
    card = (place / "labelled" / "model" / "README.md").read_text()
    assert "48 clips (39 for training, 4 to choose the epoch), taught by" in card
    assert "As the teacher's classes: 48 clips, 47 labelled with 3 classes" in printed
    assert "is left out: noise (1)" in printed
    assert "valid loss: " in (place / "labelled" / "train_log.txt").read_text()
    other = _call(place, output, **options, kd_weight=0.5, kd_temperature=2.0)
    printed = run_recipe("distil", [other], place, expect=1)
    assert (
        "holds another run (kd_temperature 1.0 there, 2.0 here); name another"
        in printed
    )


@pytest.mark.slow
def test_without_test_clips_a_student_is_trained_and_has_no_score(place):
    lines = [
        f"sounds/{n}.wav,low,{('train', 'Validation')[n % 4 == 0]}" for n in range(9)
    ]
    (place / "sides.csv").write_text("\n".join(["File,Label,Split", *lines]))
    table = {"dataset": "sides.csv", "form": "auto", "number_of_epochs": 1}
    calls = [
        _call(place, place / "sides", **table),
        _call(place, place / "untested", test_share=0, number_of_epochs=1, seed=25),
    ]
    printed = run_recipe("distil", calls, place)
    assert printed.count("There are no test clips, so this model") == 2
    for output in ("sides", "untested"):
        assert len(read_model_folder(place / output / "model").labels) == 3
        assert not (place / output / "scores.json").exists()


def test_the_oracle_tells_tones_apart():
    namespace = {}
    exec(TEACHER, namespace)
    time = torch.arange(8000) / RATE
    tones = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (200, 1200, 5000)])
    assert namespace["make"]()(tones).argmax(1).tolist() == [0, 1, 2]
