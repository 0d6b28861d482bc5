"""What fine-tuning leaves is of use to SpeechBrain alone, to the hub, and later on."""

import functools
import http.server
import json
import os
import pydoc
import re
import subprocess
import sys
import threading

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from speechbrain.inference.classifiers import EncoderClassifier

from efficientat_plugin.cli.load_model import load_tagger
from efficientat_plugin.cost.complexity import measure
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.evaluation.metrics import classification_scores, tagging_scores
from efficientat_plugin.export.source import find_source
from efficientat_plugin.features import LogMel
from efficientat_plugin.interfaces import hear
from efficientat_plugin.interfaces.encoders import load_encoder
from efficientat_plugin.pretrained import card as model_card
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    read_model_folder,
    write_model_folder,
)
from efficientat_plugin.pretrained.passt_weights import load_network, load_start
from efficientat_plugin.pretrained.safe_yaml import LEGAL_TAGS
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.load import load_teacher, open_teachers
from efficientat_plugin.training.finetuning import batch_norms

ON_CPU = {"device": "cpu"}
NAMES = ("Dog, <big>", "cat's => 'C'", "bird: é")
# As the first folders had it: no slots of SpeechBrain's, SpeechBrain's normalizer.
FIRST_YAML = """\
# A student of efficientat_plugin, for AudioTagger.from_hparams and for SpeechBrain.
sample_rate: 32000  # Hz
clip_seconds: 1.0  # s, of the clips that it was trained on
target: multiclass
short_clips: repeat  # what is done with shorter sound
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>

labels: !new:efficientat_plugin.LabelTable
  mids: ["/m/0", "/m/1", "/m/2"]
  names: ["dog", "cat", "bird"]

log_mel: !new:efficientat_plugin.LogMel
  sample_rate: 32000
  n_mels: 128
  hop_length: 640

student: !new:efficientat_plugin.MN
  num_classes: 3
  width: 0.1

modules:
  log_mel: !ref <log_mel>
  student: !ref <student>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    student: !ref <student>
  custom_hooks:  # all of the weights or none: SpeechBrain's own takes what fits
    student: !name:efficientat_plugin.load_published_state
"""


@pytest.fixture(scope="module", autouse=True)
def _measured_once():
    """What a student costs is the card's slow part, and told the same every time."""
    cost = measure(MN(3, width=0.1), n_frames=50, rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_card, "measure", lambda *_: cost)
        yield


def _model(target="multiclass", family=MN, **options):
    """Of three classes, as if it had heard something."""
    options = {"num_classes": 3, "width": 0.1} | options
    front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    student, log_mel = family(**options), LogMel(**front_end).eval()
    for norm in batch_norms(student):
        norm.momentum = None  # statistics are averages
    with torch.no_grad():
        student(log_mel(0.1 * torch.randn(4, 16000)).unsqueeze(1))
        for layer in student.classifier.class_layers:
            torch.nn.init.normal_(student.classifier.get_submodule(layer).weight)
    student.options, student.front_end = options, front_end
    labels = LabelTable([f"/m/{k}" for k in range(3)], NAMES)
    return TrainedModel(student.eval(), labels, target, 1.0)


def _write(folder, model, scores=None):
    if scores is None:
        scores = {"test, 3 clips": classification_scores(np.eye(3), np.eye(3))}
    provenance = Provenance("my pets/2024", "mn10_as", "3 clips", "CC0", scores)
    return write_model_folder(folder, model, provenance)


# --- Names that last -----------------------------------------------------------------

# Where public names were when folders named files of the package
OLD_HOMES = {
    "SoxrNormalizer": "classifiers",
    "StudentClassifier": "classifiers",
    "label_encoder": "classifiers",
    "LabelTable": "data.targets",
    "KeepFeatures": "encoders",
    "LogMelFeatures": "encoders",
    "StudentEncoder": "encoders",
    "LogMel": "features",
    "DyMN": "students.dymn",
    "MN": "students.mn",
    "load_published_state": "students.weights",
    "PaSST": "teachers.passt",
}


@pytest.mark.parametrize("tag", sorted(LEGAL_TAGS))
def test_what_a_model_folder_may_name_is_there(tag):
    assert pydoc.locate(tag.partition(":")[2]) is not None


@pytest.mark.parametrize("kind", ["MN", "DyMN", "PaSST"])
def test_a_folder_names_no_file_of_the_package_and_older_ones_load(kind, tmp_path):
    model = _model(family=DyMN if kind == "DyMN" else MN)
    if kind == "PaSST":
        options = {"num_classes": 3, "embed_dim": 32, "depth": 2, "num_heads": 4}
        options |= {"n_mels": 128, "num_frames": 50}
        student = PaSST(**options).eval()
        student.options, student.front_end = options, model.student.front_end
        model = model._replace(student=student)
    yaml = _write(tmp_path / "model", model) / "hyperparams.yaml"
    waveform = 0.1 * torch.randn(1, 32000)
    tagger = AudioTagger.from_hparams(str(tmp_path / "model"), run_opts=ON_CPU)
    expected = tagger.probabilities(waveform.numpy(), 32000)
    names = re.findall(r"efficientat_plugin\.([\w.]+)", yaml.read_text())
    assert kind in names and not any("." in name for name in names)
    old = re.sub(
        r"(:efficientat_plugin)\.(\w+)",
        lambda found: f"{found[1]}.{OLD_HOMES[found[2]]}.{found[2]}",
        yaml.read_text(),
    )
    yaml.write_text(old)
    assert "efficientat_plugin.classifiers.SoxrNormalizer" in old
    tagger = AudioTagger.from_hparams(str(tmp_path / "model"), run_opts=ON_CPU)
    np.testing.assert_array_equal(
        tagger.probabilities(waveform.numpy(), 32000), expected
    )
    assert load_network(tmp_path / "model").num_classes == 3
    if kind == "PaSST":
        return  # for which SpeechBrain has no slot
    classifier = EncoderClassifier.from_hparams(
        source=str(tmp_path / "model"), run_opts=ON_CPU
    )
    given = classifier.classify_batch(waveform)[0].exp().numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)


# --- SpeechBrain alone ---------------------------------------------------------------


@pytest.mark.parametrize("target", ["multiclass", "multilabel"])
@pytest.mark.parametrize("options", [{"head": "fully_convolutional"}, {"family": DyMN}])
def test_speechbrain_alone_says_what_the_student_says(tmp_path, options, target):
    model = _model(target, **options)
    folder = _write(tmp_path / "model", model)
    classifier = EncoderClassifier.from_hparams(
        source=str(folder), savedir=str(tmp_path / "links"), run_opts=ON_CPU
    )
    waveform = 0.1 * torch.randn(2, 32000)
    waveform[1] = waveform[1].cumsum(0) / 100  # as unlike as two sounds can be
    with torch.no_grad():
        output = model.student(classifier.mods.log_mel(waveform).unsqueeze(1))
        given, score, index, names = classifier.classify_batch(waveform)
        embedding = classifier.encode_batch(waveform)
    logits = output.logits
    assert (logits[0] - logits[1]).abs().max() > 0.1
    expected = logits.sigmoid() if target == "multilabel" else logits.softmax(-1)
    torch.testing.assert_close(given.exp(), expected)
    assert names == [NAMES[k] for k in logits.argmax(-1)]
    torch.testing.assert_close(score, given.gather(1, index[:, None])[:, 0])
    # By their size: those of an untrained DyMN are large, and rounded accordingly.
    size = output.embedding.abs().max()
    torch.testing.assert_close(embedding / size, output.embedding[:, None] / size)


def test_weights_are_there_once_and_whole(tmp_path):
    folder = _write(tmp_path / "model", _model())
    classifier = EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    students = {id(p) for p in classifier.mods.student.parameters()}
    assert {id(p) for p in classifier.parameters()} == students
    assert [path.suffix for path in folder.iterdir()].count(".ckpt") == 1
    torch.save(MN(3, width=0.2).state_dict(), folder / "student.ckpt")
    with pytest.raises(ValueError, match="it is of MN of width 0.2"):
        EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    (folder / "student.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"student\.ckpt is not a file"):
        EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_files_are_heard_as_the_tagger_hears_them(tmp_path, rate):
    folder = _write(tmp_path / "model", _model())
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (rate, 2))  # 1 s
    soundfile.write(tmp_path / "sound.wav", samples, rate)
    classifier = EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    given, _, _, names = classifier.classify_file(str(tmp_path / "sound.wav"))
    tagger = AudioTagger.from_hparams(source=str(folder), run_opts=ON_CPU)
    expected = tagger.probabilities([tmp_path / "sound.wav"])
    np.testing.assert_allclose(given.exp().numpy(), expected, rtol=1e-4, atol=1e-6)
    assert names == [tagger.tag(tmp_path / "sound.wav")[0].name]


def test_a_head_that_needs_frames_embeds_and_has_no_classifier(tmp_path):
    folder = _write(tmp_path / "model", _model(head="multihead_attention_pooling"))
    classifier = EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    waveform = torch.randn(1, 32000)
    assert classifier.encode_batch(waveform).shape == (1, 1, 96)
    with pytest.raises(AttributeError, match="no attribute 'classifier'"):
        classifier.classify_batch(waveform)
    assert "it cannot classify" in (folder / "README.md").read_text()
    tagger = AudioTagger.from_hparams(source=str(folder), run_opts=ON_CPU)
    assert len(tagger.tag(waveform[0], sample_rate=32000)) == 3


# --- A transformer -------------------------------------------------------------------

WAYS = {
    "tagger": lambda path: AudioTagger.from_hparams(str(path), run_opts=ON_CPU),
    "tagger of weights": lambda path: AudioTagger.from_student(path, run_opts=ON_CPU),
    "command": lambda path: load_tagger(str(path), None, "cpu"),
}
OF_WEIGHTS = ("tagger of weights", "command")
SIZES = {"num_frames": 50, "embed_dim": 32, "depth": 1, "num_heads": 2}
SIZES |= {"frequency_stride": 16, "time_stride": 16}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """The folder of a run that left a transformer, and what it is."""
    student = PaSST(3, **SIZES).eval()
    student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    labels = LabelTable([f"/m/{k}" for k in range(3)], NAMES)
    model = TrainedModel(student, labels, "multilabel", 1.0)
    run = tmp_path_factory.mktemp("run")
    _write(run / "model", model)
    return run, model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("inside", [".", "model", "model/student.ckpt"])
def test_a_transformer_is_a_model_by_every_way_in(transformer, way, inside):
    run, model = transformer
    path = run / inside
    if path.is_file() and way not in OF_WEIGHTS:
        pytest.skip("takes folders")
    tagger = WAYS[way](path)
    sound = 0.1 * np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    log_mel = LogMel(**model.student.front_end).eval()(torch.from_numpy(sound)[None])
    with torch.no_grad():
        expected = model.student(log_mel.unsqueeze(1)).logits.sigmoid()
    found = tagger.probabilities([sound], 32000)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
    assert tagger.labels.names == NAMES and tagger.clip_seconds == 1.0
    # Shorter than a patch, and longer than there are positions for
    assert len(tagger.tag(sound[:700], 32000)) == 3
    assert len(tagger.tag(np.tile(sound, 3), 32000)) == 3


def test_a_transformer_teaches_and_starts_another(transformer):
    run, model = transformer
    teacher, labels, target = open_teachers(str(run))
    assert labels.names == NAMES and target == "multilabel"
    loaded = load_teacher(run)
    assert loaded.labels.mids == model.labels.mids
    again = PaSST(3, **SIZES)
    assert load_start(again, run) == []
    state = model.student.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("head_dist.")}  # unread
    for network in (teacher.members[0].student, loaded.student, again):
        own = network.state_dict()
        assert all(torch.equal(own[name], value) for name, value in state.items())
    options = read_model_folder(run).student.options
    assert options.items() >= model.student.options.items()


def test_what_needs_the_layers_of_a_cnn_says_so(transformer):
    run, _ = transformer
    for load in (hear.load_model, load_student, load_encoder):
        with pytest.raises(ValueError, match="is a PaSST, and an MN or a DyMN is nee"):
            load(run)
    with pytest.raises(ValueError, match="only an MN or a DyMN can be exported"):
        find_source(run)


# --- Later ---------------------------------------------------------------------------


def test_the_first_folders_are_still_read(tmp_path):
    model = _model()
    folder = _write(tmp_path / "model", model)
    (folder / "hyperparams.yaml").write_text(FIRST_YAML)
    again = read_model_folder(folder)
    assert again.labels.names == ("dog", "cat", "bird")
    assert again.labels.mids == model.labels.mids and again[2:] == model[2:]
    log_mel = torch.randn(1, 1, 128, 50)
    expected = model.student(log_mel).logits
    torch.testing.assert_close(again.student(log_mel).logits, expected)
    tagger = AudioTagger.from_hparams(source=str(folder), run_opts=ON_CPU)
    torch.testing.assert_close(tagger.mods.student(log_mel).logits, expected)


def test_reading_to_train_on_builds_nothing(tmp_path):
    folder = _write(tmp_path / "model", _model())
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write(f"\nmade: !apply:os.mkdir [{tmp_path / 'made'}]\n")
    assert read_model_folder(folder).labels.names == NAMES
    assert not (tmp_path / "made").exists()


# --- The hub -------------------------------------------------------------------------


def test_the_hub_reads_the_card(tmp_path):
    everywhere = np.ones((2, 3))  # classes without a negative: no AUC
    scores = {
        "test, 3 clips": tagging_scores(np.eye(3), np.eye(3)),
        "device *a*": tagging_scores(everywhere, everywhere),
    }
    folder = _write(tmp_path / "model", _model("multilabel"), scores)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "speechbrain"
    assert card.data.pipeline_tag == "audio-classification"
    assert {"speechbrain", "audio-classification"} <= set(card.data.tags)
    # "other" would need the text of a licence in the folder, and a name for it
    assert card.data.license == "unknown"
    assert card.data.metrics == ["mAP"]
    results = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert results["mAP, test, 3 clips"] == results["AUC, test, 3 clips"] == 1.0
    assert all(np.isfinite(value) for value in results.values())
    assert {r.dataset_name for r in card.data.eval_results} == {"my-pets-2024"}
    assert card.text.strip().startswith("# my pets/2024")


def test_a_card_has_a_table_of_classes_versions_and_limits(tmp_path):
    told = np.eye(3)[[0, 0, 1, 1]]
    labels = np.eye(3)[[0, 0, 1, 0]]
    scores = {"test, 4 clips": classification_scores(told, labels)}
    folder = _write(tmp_path / "model", _model(), scores)
    card = (folder / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert rows[0] == "| class | clips | AP | AUC | precision | recall | F1 |"
    names = [row.split("|")[1].strip() for row in rows[2:]]
    expected = [model_card._plain(name) for name in NAMES]
    assert names == sorted(expected, key=str.casefold)
    (first,) = [row for row in rows if row.startswith(f"| {expected[0]} |")]
    assert "| 3 | 0.917 | 0.833 | 1.000 | 0.667 | 0.800 |" in first
    (last,) = [row for row in rows if row.startswith(f"| {expected[2]} |")]
    assert last.endswith("| 0 | - | - | - | - | - |")
    assert "efficientat_plugin 0.1.0, torch " in card and ", speechbrain " in card
    assert "mono clips of 1 s at 32000 Hz" in card and "are repeated" in card
    assert "1 of its 3 classes had no test clips" in card
    assert "fewer than 5 clips, so other clips may score very differently" in card


def test_a_card_names_no_place_on_a_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "results" / "1234"
    run.mkdir(parents=True)
    (tmp_path / "my, sounds").mkdir()
    for given, name in [
        (tmp_path / "pets.csv", "pets.csv"),
        ("my, sounds", "my, sounds"),
        (".", tmp_path.name),
        (run / "model", "1234/model"),
        ("mn10_as,my.module:function", "mn10_as, my.module:function"),
        (f"{run / 'model'},{tmp_path}/a.pt", "1234/model, a.pt"),
        ("ashraq/esc50", "ashraq/esc50"),
    ]:
        assert model_card.name_of(given) == name
    start = str(run / "model")
    provenance = Provenance("pets", start, "3 clips", "CC0", {})
    folder = write_model_folder(tmp_path / "model", _model(), provenance)
    card = (folder / "README.md").read_text()
    assert "Started from: 1234/model\n" in card and str(tmp_path) not in card
    assert "It was not tested." in card
    assert "## Scores\n\nNone: it was not tested.\n" in card


@pytest.mark.parametrize(
    "text, expected",
    [
        ("~~~", r"\~\~\~"),
        ("$$x$$", r"\$\$x\$\$"),
        ("- a - b", r"\- a - b"),
        ("+ a", r"\+ a"),
        ("12. a 3. b", r"12\. a 3. b"),
        ("1) a", r"1\) a"),
        ("    code", "code"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
        ("<b> [a](b) *c* `d` # | _", r"\<b\> \[a\](b) \*c\* \`d\` \# \| \_"),
        ("see https://a.b/c or www.a.b", r"see https:\//a.b/c or www\.a.b"),
        ("back\\slash", r"back\\slash"),
        ("ESC-50, fold 1: 0.5 (a)", "ESC-50, fold 1: 0.5 (a)"),
    ],
)
def test_names_on_a_card_are_no_markup(text, expected):
    assert model_card._plain(text) == expected


class _Hub(http.server.SimpleHTTPRequestHandler):
    """Answers for "someone/<folder>" as the hub does for public files."""

    def translate_path(self, path):
        found = re.fullmatch(r"/someone/(\w+)/resolve/main/([\w.]+)", path)
        return os.path.join(self.directory, *found.groups() if found else ["nothing"])

    def end_headers(self):
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{abs(hash(self.path)):x}"')
        super().end_headers()

    def send_error(self, code, message=None, explain=None):
        self.send_response(code)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """Serves the folders of ``tmp_path``; gives its address."""
    handler = functools.partial(_Hub, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no/such_folder", r"it was not found on the hub \(.*\): no route"),
        ("no_such_folder", "check the path, or give user/name on the hub"),
        ("./no/such_folder", "check the path, or give user/name on the hub"),
        ("/no/such_folder", "check the path, or give user/name on the hub"),
        ("no/such/folder", "check the path, or give user/name on the hub"),
    ],
)
@pytest.mark.parametrize("trust", [True, False])
def test_a_folder_that_is_not_there_is_asked_for_once(source, said, trust, monkeypatch):
    asked = []

    def refused(url, **_options):
        asked.append(url)
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refused)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(FileNotFoundError, match=said):
        AudioTagger.from_hparams(source, trust=trust)
    assert len(asked) == ("not found on the hub" in said)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="was not contacted|user/name"):
        AudioTagger.from_hparams(source, trust=trust)
    assert len(asked) == ("not found on the hub" in said)


LOADING = """
import json, sys
from speechbrain.inference.classifiers import EncoderClassifier
from efficientat_plugin import AudioTagger

sound, savedir = sys.argv[1:]
on_cpu = {"device": "cpu"}
tagger = AudioTagger.from_hparams("someone/model", savedir=savedir, run_opts=on_cpu)
classifier = EncoderClassifier.from_hparams("someone/model", run_opts=on_cpu)
try:
    AudioTagger.from_hparams("someone/without", run_opts=on_cpu)
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
said = [tagger.tag(sound)[0].name, classifier.classify_file(sound)[3][0], refusal]
print(json.dumps(said))
"""


@pytest.mark.slow
def test_a_model_loads_by_its_name_on_the_hub(tmp_path, hub):
    folder = _write(tmp_path / "model", _model())
    (_write(tmp_path / "without", _model()) / "student.ckpt").unlink()
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 32000)
    soundfile.write(tmp_path / "sound.wav", samples, 32000)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, tmp_path / "sound.wav", tmp_path / "saved"],
        env=os.environ
        | {
            "HF_ENDPOINT": hub,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tagged, classified, refusal = json.loads(done.stdout.splitlines()[-1])
    tagger = AudioTagger.from_hparams(source=str(folder), run_opts=ON_CPU)
    assert tagged == classified == tagger.tag(tmp_path / "sound.wav")[0].name
    assert "someone/without" in refusal and "student.ckpt" in refusal
    saved = {path.name for path in (tmp_path / "saved").iterdir()}
    assert saved == {"hyperparams.yaml", "student.ckpt"}
