"""Every key of a YAML is read by the run that it is of."""

import json

import numpy as np
import pytest
import soundfile
import torch
from event_runs import write_events, write_half
from recipe_runs import REPOSITORY, arguments_of, run_to_end
from small_rows import EVAL_IDS, TRAIN_IDS, rows_of, write_parquet
from speechbrain.utils.run_opts import RunOptions
from test_cmkd import PATCHOUT, SMALL
from test_distil import TEACHER

from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.options import read_yaml
from efficientat_plugin.teachers.store.writer import StoreWriter

pytestmark = pytest.mark.slow

# Runs a recipe whose settings note who reads them. What is spread (``**group``) or
# iterated over counts as read, but not what a Brain is merely given.
RECORDING = """
import os, runpy, sys
from types import SimpleNamespace
import speechbrain as sb
from efficientat_plugin.support import launch

def note(name):
    with open(os.environ["NOTES"], "a") as notes:
        print(name, file=notes)

class Recorded(dict):
    def __init__(self, values, group=""):
        super().__init__({
            k: Recorded(v, f"{group}{k}.") if type(v) is dict else v
            for k, v in dict.items(values)
        })
        self.group = group

    def __getitem__(self, key):
        note(self.group + key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        return self[key] if key in self else default

    def __iter__(self):  # without it, ** asks for no item
        return super().__iter__()

    def items(self):
        return [(key, self[key]) for key in self.keys()]

    def __or__(self, other):
        return Recorded({**dict(dict.items(self)), **other}, self.group)

class Given(SimpleNamespace):
    def __getattribute__(self, name):
        note(name)
        return super().__getattribute__(name)

load, init = launch.load_hyperpyyaml, sb.Brain.__init__

def init_and_note(self, modules=None, opt_class=None, hparams=None, **others):
    plain = dict(dict.items(hparams))
    init(self, modules=modules, opt_class=opt_class, hparams=plain, **others)
    self.hparams = Given(**plain)

launch.load_hyperpyyaml = lambda *given: Recorded(load(*given))
sb.Brain.__init__ = init_and_note
sys.path.append(os.path.dirname(os.environ["RECIPE"]))  # as of a script
runpy.run_path(os.environ["RECIPE"], run_name="__main__")
"""
FRONT_END = "{n_mels: 128, hop_length: 320}"
RUN = {"clip_seconds": 0.5, "batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
RUN |= {"number_of_epochs": 1, "device": "cpu", "output_folder": "out"}
KD = RUN | {"dataset": "data", "dataset_cache": "cache", "train_split": "bal_train"}
KD |= {"clips_per_epoch": 4, "pretrained": None, "class_balanced": False}
SAMPLE = dict.fromkeys(("num_labelled", "num_unlabelled", "num_eval", "num_seeds"), 1)
SAMPLE |= {"sample_folder": "sample", "teacher": "store", "width": 0.1}
ONLINE = {"teacher_name": "527.pt", "teacher_options": FRONT_END}
TUNE = RUN | {"dataset": "sounds", "facts": "facts.yaml", "pretrained": "7.pt"}
TUNE |= {
    "split": "random",
    "valid_share": 0.3,
    "test_share": 0.3,
    "teacher": "ear:make",
}
TUNE |= {"log_mel": FRONT_END, "dataset_cache": "cache", "target": "multiclass"}
TUNE["classes"] = "low,middle,high"  # in the teacher's order
TRANSFORMER = SMALL | PATCHOUT


def _distilled(**more):
    """From rows, and from a stream of them."""
    streamed = {
        "streaming": True,
        "waveform_mix": None,
        "compare_without_teacher": "no",
    }
    if "peer_lr_scale" in more:
        del streamed["compare_without_teacher"]
    return "audioset_kd", [KD | more, KD | more | streamed]


# The recipe of each YAML, and runs that read its keys
RUNS = {
    "mn10": _distilled(teacher="store", width=0.1),
    "dymn10": _distilled(teacher="store", width=0.1),
    "quickstart": _distilled(**SAMPLE),
    "cmkd_cnn_from_transformer": _distilled(width=0.1, **ONLINE),
    "cmkd_transformer_from_cnn": _distilled(**ONLINE, **TRANSFORMER),
    "cmkd_mutual": _distilled(width=0.1, peer_lr_scale=1.0, **TRANSFORMER),
    "distil": ("distil", [RUN | {"dataset": "sounds", "teacher": "ear:make"}]),
    "dump_teacher_logits": (
        "dump_teacher_logits",
        [
            {"dataset": "sounds", "teachers": "527.pt", "teacher_options": FRONT_END}
            | {"num_workers": 0, "clip_seconds": 0.5, "store": "dumped"}
        ],
    ),
    "make_transfer_set": (
        "make_transfer_set",
        [{"dataset": "data", "dataset_cache": "cache", "num_clips": 2}],
    ),
    "soundscapes": (
        "make_soundscapes",
        [{"sounds": "sounds", "facts": "facts.yaml", "number": 4, "folder": "scapes"}],
    ),
    "prepare_data": (
        "prepare_data",
        [
            {"dataset": "sounds", "num_proc": 1},
            {"dataset": "data", "dataset_cache": "cache", "split": "eval"}
            | {"num_proc": 1, "folder": "prepared"},
        ],
    ),
}
EVENTS = RUN | {"dataset": "event_sample", "events": "event_sample/events/train.tsv"}
EVENTS["events"] += ",event_sample/events/valid.tsv,event_sample/events/test.tsv"
EVENTS |= {"classes": None, "teacher": None, "warmup_steps": 0, "width": 0.1}
EVENTS |= {"sequence_dim": 16, "clip_seconds": 3.0, "clips_per_epoch": 4}
EVENTS |= {"grad_accumulation_factor": 1, "fold": None}
for _name in ("fmn10", "fmn10_tf256", "fmn10_gru256", "fmn10_hybrid256"):
    RUNS[_name] = ("audioset_strong", [EVENTS | {"backbone": "7.pt"}])
HALVES = {"events": "event_sample/events/half.tsv", "strong_clips": 2}
HALVES |= {"class_balanced": False, "backbone": "7.pt"}
RUNS["fmn10_tf256_advanced"] = ("audioset_strong", [EVENTS | HALVES])
SAMPLED = EVENTS | {"folder": "soundscapes", "number": 3}
RUNS["events_quickstart"] = (
    "audioset_strong",
    [SAMPLED],
)
OWN_EVENTS = {name: EVENTS[name] for name in EVENTS if name != "width"}
OWN_EVENTS |= {"pretrained": "7.pt", "log_mel": FRONT_END}
RUNS["finetune_events"] = ("finetune", [OWN_EVENTS])
RUNS["dcase16_t2"] = ("finetune", [OWN_EVENTS])
for _name in ("finetune", "esc50", "fsd50k", "openmic", "tau2020"):
    RUNS[_name] = ("finetune", [TUNE])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, weights and a teacher for every recipe."""
    place = tmp_path_factory.mktemp("keys")
    (place / "recording.py").write_text(RECORDING)
    (place / "ear.py").write_text(TEACHER)
    (place / "facts.yaml").write_text("form: class_folders\n")
    write_events(place / "event_sample", 12)
    write_half(place / "event_sample")
    torch.manual_seed(0)
    for num_classes in (7, 527):
        state = MN(num_classes, width=0.1).state_dict()
        torch.save(state, place / f"{num_classes}.pt")
    time = np.arange(8000) / 16000
    for number in range(24):
        kind, frequency = [("low", 200), ("middle", 1200), ("high", 5000)][number % 3]
        (place / "sounds" / kind).mkdir(parents=True, exist_ok=True)
        sound = 0.3 * np.sin(2 * np.pi * frequency * time)
        soundfile.write(place / "sounds" / kind / f"{number}.wav", sound, 16000)
    for split, ids in {"bal_train": TRAIN_IDS, "eval": EVAL_IDS}.items():
        rows = [row | {"labels": ["/m/09x0r"]} for row in rows_of(ids)]
        write_parquet(place / "data" / "data" / split / "0.parquet", rows)
    labels = audioset_labels()
    about = {"teacher": "an oracle", "clip_seconds": 0.5}
    about |= {"labels_sha256": labels.sha256, "num_classes": 527, "sample_rate": 32000}
    with StoreWriter(place / "store", **about) as store:
        speech = 8 * labels.multi_hot([labels.index["/m/09x0r"]]) - 4
        store.append(TRAIN_IDS, speech.repeat(len(TRAIN_IDS), 1))
    return place


def test_every_yaml_is_run_here():
    assert {*RUNS} == {path.stem for path in (REPOSITORY / "hparams").glob("*.yaml")}


@pytest.mark.parametrize("yaml", RUNS)
def test_every_key_is_read(yaml, place, tmp_path):
    recipe, runs = RUNS[yaml]
    notes, path = tmp_path / "notes", REPOSITORY / "hparams" / f"{yaml}.yaml"
    environment = {"NOTES": str(notes), "PYTHONPATH": str(place)}
    environment["RECIPE"] = str(REPOSITORY / "recipes" / f"{recipe}.py")
    for number, options in enumerate(runs):
        if "output_folder" in options:
            options = options | {"output_folder": tmp_path / str(number)}
        command = [place / "recording.py", *arguments_of(yaml, **options)]
        run_to_end(command, folder=place, **environment)
    read, text = {*notes.read_text().split()}, path.read_text()
    read |= {*RunOptions().as_dict()}  # which SpeechBrain reads
    unread = []
    for key, node in read_yaml(path).items():
        is_group = isinstance(node, dict) and node and node.tag.value is None
        names = [f"{key}.{name}" for name in node] if is_group else [key]
        for name in names:
            reference = f"<{name.replace('.', '[')}{']' if is_group else ''}>"
            if not name.startswith("__") and name not in read and reference not in text:
                unread.append(name)
    assert not unread, json.dumps(unread)
