"""The card of a trained model, for people and for the hub."""

import numpy as np
import pytest
from huggingface_hub import ModelCard
from trained_models import NAMES, trained_model, write_model

from efficientat_plugin.cost.complexity import count_macs, measure_once
from efficientat_plugin.evaluation.metrics import classification_scores, tagging_scores
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained import card as model_card
from efficientat_plugin.pretrained.folder import Provenance, write_model_folder


def test_the_hub_reads_the_card(tmp_path):
    everywhere = np.ones((2, 3))  # classes without a negative: no AUC
    scores = {
        "test, 3 clips": tagging_scores(np.eye(3), np.eye(3)),
        "device *a*": tagging_scores(everywhere, everywhere),
    }
    folder = write_model(tmp_path / "model", trained_model("multilabel"), scores)
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


def test_a_card_states_the_cost_of_its_student(tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "measure_once", measure_once)  # not one for all
    model = trained_model()
    text = (write_model(tmp_path / "model", model) / "README.md").read_text()
    log_mel = LogMel(**model.student.front_end)
    frames = log_mel.num_frames(round(model.clip_seconds * log_mel.sample_rate))
    macs = count_macs(model.student, log_mel.n_mels, frames)
    assert f"{macs / 1e6:,.3f} M per clip" in text


def test_a_card_has_a_table_of_classes_versions_and_limits(tmp_path):
    predicted = np.eye(3)[[0, 0, 1, 1]]
    labels = np.eye(3)[[0, 0, 1, 0]]
    scores = {"test, 4 clips": classification_scores(predicted, labels)}
    folder = write_model(tmp_path / "model", trained_model(), scores)
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
    folder = write_model_folder(tmp_path / "model", trained_model(), provenance)
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
