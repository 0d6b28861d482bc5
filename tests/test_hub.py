"""Names on the Hugging Face hub: what is looked up there, and what loads from it."""

import json
import os
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import soundfile
from servers import local_hub
from trained_models import trained_model, write_model

from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.tagging.torch_tagger import AudioTagger

ON_CPU = {"device": "cpu"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such_folder", r"it was not found on the hub \(.*\): no route"),
        ("no_such_folder", "check the path, or give user/name on the hub"),
        ("./no/such_folder", "check the path, or give user/name on the hub"),
        ("/no/such_folder", "check the path, or give user/name on the hub"),
        ("no/such/folder", "check the path, or give user/name on the hub"),
    ],
)
@pytest.mark.parametrize("trust", [True, False])
def test_a_folder_that_is_not_there_is_asked_for_once(
    source, message, trust, monkeypatch
):
    asked = []

    def refused(url, **_options):
        asked.append(url)
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refused)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(FileNotFoundError, match=message):
        AudioTagger.from_hparams(source, trust=trust)
    assert len(asked) == ("not found on the hub" in message)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="was not contacted|user/name"):
        AudioTagger.from_hparams(source, trust=trust)
    assert len(asked) == ("not found on the hub" in message)


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
message = [tagger.tag(sound)[0].name, classifier.classify_file(sound)[3][0], refusal]
print(json.dumps(message))
"""


@pytest.mark.slow
def test_a_model_loads_by_its_name_on_the_hub(tmp_path):
    folder = write_model(tmp_path / "model", trained_model())
    (write_model(tmp_path / "without", trained_model()) / "student.ckpt").unlink()
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 32000)
    soundfile.write(tmp_path / "sound.wav", samples, 32000)
    own = {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with local_hub(tmp_path) as variables:
        done = subprocess.run(
            [sys.executable, "-c", LOADING, tmp_path / "sound.wav", tmp_path / "saved"],
            env=os.environ | variables | own,
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


@pytest.mark.parametrize(
    "name",
    ["csv", "pandas", "a/b/c", "./a/b", "~/a", "/a/b", "../a", "a b/c", "http://a"],
)
def test_only_user_and_name_are_asked_of_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", asked)
    monkeypatch.setattr("datasets.load_dataset", asked)
    monkeypatch.setattr("efficientat_plugin.tagging.torch_tagger.fetch", asked)
    for load in (read_table, lambda name: load_rows(name, "train")):
        with pytest.raises(FileNotFoundError, match=f"no file or folder {name}"):
            load(name)
    with pytest.raises(FileNotFoundError, match=f"no file or folder {name}"):
        AudioTagger.from_hparams(name)


def test_the_hub_is_not_asked_without_a_word(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "efficientat_plugin.support.hub.constants.HF_HUB_OFFLINE", False
    )

    def unreachable(*_, **__):
        assert "looking on the Hugging Face hub" in caplog.text
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(FileNotFoundError):
        read_table("data/clients")
    caplog.clear()
    with pytest.raises(
        FileNotFoundError, match="not found on the hub \\(.*\\): no network"
    ):
        AudioTagger.from_hparams("models/mine")
