"""Messages about data are on the console and in log.txt."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import arguments_of, run_recipe
from test_distil import SMALL, TEACHER

from efficientat_plugin.cli import main
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.console import keep_log, logging_to_console

ABSENT = "clips_segments.csv: 18 clips, 1 without a file"
OUTSIDE = "1 clips of sounds are in no class folder"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Class folders with a clip beside them, and AudioSet's layout less a file."""
    place = tmp_path_factory.mktemp("console")
    (place / "ear.py").write_text(TEACHER)
    torch.manual_seed(0)
    torch.save(MN(527, width=0.1).state_dict(), place / "small.pt")
    rng = np.random.default_rng(0)
    lines = ["# YTID, start_seconds, end_seconds, positive_labels"]
    for number in range(19):
        sound = 0.1 * rng.standard_normal(8000)
        folder = place / "sounds" / ("low", "high")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number}.wav"
        soundfile.write(path, sound, 16000)
        clip_id = f"abcdefgh{number:03}"
        lines.append(f'{clip_id}, 0.000, 10.000, "/m/09x0r"')
        if number < 18:
            (place / "audioset").mkdir(exist_ok=True)
            soundfile.write(place / "audioset" / f"{clip_id}.wav", sound, 16000)
    soundfile.write(place / "sounds" / "stray.wav", sound, 16000)
    (place / "audioset" / "clips_segments.csv").write_text("\n".join(lines))
    return place


def _options(recipe, place, output):
    small = {"clip_seconds": 0.5, "num_workers": 0, "device": "cpu"}
    folder = {"dataset": "sounds", "form": "class_folders"}
    audioset = {"dataset": "audioset", "clip_seconds": 0.5}
    if recipe == "finetune":
        front_end = {"log_mel": "{n_mels: 128, hop_length: 320}"}
        weights = {"pretrained": "small.pt", "output_folder": output}
        return small | folder | front_end | weights
    if recipe == "distil":
        more = {"teacher": "ear:make", "number_of_epochs": 1, "output_folder": output}
        return SMALL | folder | more
    if recipe == "audioset_kd":
        options = small | audioset | {"output_folder": output, "train_split": "clips"}
        options |= {"eval_split": "clips", "teacher": None, "clips_per_epoch": 16}
        sample = ("num_labelled", "num_unlabelled", "num_eval", "num_seeds")
        more = {"sample_folder": "sample", "number_of_epochs": 1}
        return options | dict.fromkeys(sample, 1) | more
    if recipe == "prepare_data":
        return folder | {"folder": output, "num_proc": 1, "codec": "int16"}
    if recipe == "make_transfer_set":
        return audioset | {"split": "clips", "folder": output, "num_clips": 2}
    if recipe == "make_soundscapes":
        sounds = {"sounds": "sounds", "form": "class_folders"}
        return sounds | {"folder": output, "number": 4}
    assert recipe == "dump_teacher_logits"
    more = {"split": "clips", "teachers": "small.pt", "store": output}
    more |= {"teacher_options": "{n_mels: 128, hop_length: 320}", "num_workers": 0}
    return audioset | more


EXPECTED = {
    "finetune": ("finetune", OUTSIDE),
    "distil": ("distil", OUTSIDE),
    "quickstart": ("audioset_kd", ABSENT),
    "prepare_data": ("prepare_data", OUTSIDE),
    "make_transfer_set": ("make_transfer_set", ABSENT),
    "soundscapes": ("make_soundscapes", OUTSIDE),
    "dump_teacher_logits": ("dump_teacher_logits", ABSENT),
}


@pytest.mark.slow
@pytest.mark.parametrize("yaml", EXPECTED)
def test_what_is_left_out_is_on_the_console_and_in_log_txt(yaml, place, tmp_path):
    recipe, sentence = EXPECTED[yaml]
    output = tmp_path / "output"
    call = arguments_of(yaml, **_options(recipe, place, output))
    printed = run_recipe(recipe, [call], place)
    assert printed.count(sentence) == (2 if recipe == "audioset_kd" else 1), printed
    if recipe not in ("finetune", "distil", "audioset_kd"):
        return  # one that trains nothing has no log.txt
    lines = (output / "log.txt").read_text().splitlines()
    assert sum(sentence in line for line in lines) >= 1
    debugging = [line for line in lines if " - DEBUG - " in line]
    assert not [line for line in debugging if "- efficientat_plugin" not in line]


def test_a_command_prints_on_stderr_what_is_logged(monkeypatch, capsys):
    def warn(_arguments):
        logging.getLogger("efficientat_plugin.data").warning("1 is left\x1b out")
        logging.getLogger("efficientat_plugin.data").info("sound was taken for labels")
        framework = logging.getLogger("speechbrain.utils.parameter_transfer")
        monkeypatch.setattr(framework, "level", logging.INFO)
        framework.info("Loading pretrained files")
        return 0

    monkeypatch.setattr("efficientat_plugin.cli.listing.run", warn)
    assert main(["list"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == (
        "efficientat: Warning: 1 is left\\x1b out\n"
        "efficientat: sound was taken for labels\n"
    )


def test_a_log_file_gets_what_came_before_it_and_no_foreign_debugging(tmp_path):
    ours = logging.getLogger("efficientat_plugin.data")
    root = logging.getLogger()
    before = [*root.handlers]
    file = logging.FileHandler(tmp_path / "log.txt")
    with logging_to_console("stdout"):
        ours.debug("read")
        root.addHandler(file)
        shell = logging.getLogger("speechbrain.utils.superpowers")
        shell.setLevel(logging.DEBUG)  # as SpeechBrain does, when it makes the folder
        shell.debug("a list of all packages")
        keep_log()
        fonts = logging.getLogger("matplotlib.font_manager")
        fonts.setLevel(logging.DEBUG)
        fonts.debug("scored")
        fonts.warning("missing")
        ours.debug("trained")
        root.removeHandler(file)
        for other in (fonts, shell):
            other.setLevel(logging.NOTSET)
    file.close()
    assert (tmp_path / "log.txt").read_text() == "read\nmissing\ntrained\n"
    assert root.handlers == before
