"""Data, labels and teachers that distillation is given, and what it refuses."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from exported_models import random_weights
from kd_runs import RECIPE, REPOSITORY, TONES, copy_tones, kd_command, write_tones
from recipe_runs import (
    RecipeProcess,
    arguments_of,
    run_recipe,
    run_to_end,
)

from efficientat_plugin.data.labels import audioset_labels, audioset_vocabulary
from efficientat_plugin.data.parquet import waveform_digest
from efficientat_plugin.data.rows import load_rows, summarize_rows
from efficientat_plugin.data.sample.sample_set import sample_clip, sample_teacher
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.options import option_places, read_yaml
from efficientat_plugin.teachers.store.logits_store import LogitsStore


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


def test_missing_inputs_are_named_in_one_message(tmp_path):
    command = [str(RECIPE), str(REPOSITORY / "hparams" / "mn10.yaml")]
    command += ["--output_folder", str(tmp_path / "run"), "--device", "cpu"]
    text = run_to_end(command, expect=1)
    message = text[text.index("Missing inputs") :]
    for part in (
        "--dataset PATH",
        "--teacher STORE",
        "--pretrained NAME",
        "quickstart",
    ):
        assert part in message
    assert not (tmp_path / "run" / "save").exists() or not any(
        (tmp_path / "run" / "save").iterdir()
    )


@pytest.mark.parametrize("options", [[], ["--test_only", "--pretrained", "mn04_as"]])
def test_damaged_inputs_are_named_in_one_message(tmp_path, options):
    (tmp_path / "rows").mkdir()
    for split in ("bal_train", "unbal_train", "eval"):
        (tmp_path / "rows" / f"{split}.parquet").write_bytes(b"PAR1")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    command = [str(RECIPE), str(REPOSITORY / "hparams" / "mn10.yaml"), *options]
    command += ["--output_folder", str(tmp_path / "run"), "--device", "cpu"]
    command += ["--dataset", str(tmp_path / "rows")]
    command += ["--teacher", str(tmp_path / "store")]
    text = run_to_end(command, expect=1)
    assert "Traceback" not in text
    assert re.search(r"--dataset PATH: .*\.parquet is damaged \(.*\); download", text)
    if options:  # whose weights are not in the tests' own home
        assert "--pretrained NAME or PATH: " in text and "HF_HUB_OFFLINE" in text
    else:
        assert f"--teacher STORE: {tmp_path / 'store'}" in text


@pytest.fixture(scope="module")
def recipe():
    """The recipe's functions, without a process."""
    spec = importlib.util.spec_from_file_location("audioset_kd", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFUSALS = (SystemExit, ValueError)  # listed, or raised


STREAM = {"streaming": True, "clips_per_epoch": 48}


def _prepared(recipe, data, tmp_path, **overrides):
    path = REPOSITORY / "hparams" / "mn10.yaml"
    overrides = {
        "dataset": str(data),
        "dataset_cache": str(data / "cache"),
        "train_split": "bal_train",
        "teacher": str(data / "teacher"),
        "pretrained": None,
        "output_folder": str(tmp_path),
        "clips_per_epoch": None,
        "batch_size": 8,
        "width": 0.1,
        **overrides,
    }
    return recipe.prepare(str(path), overrides, recipe.load_hparams(path, overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_classes": 50}, "num_classes=50: AudioSet has 527 classes"),
        ({"clips_per_epoch": 49}, "49 cannot be drawn with class balance from 48"),
        ({"batch_size": 49}, "batch_size=49 is more than an epoch's 48 clips"),
        (STREAM, "class_balanced need.*pass --class_balanced False"),
        (
            STREAM | {"class_balanced": False, "compare_without_teacher": True},
            "pass --compare_without_teacher False",
        ),
        (
            STREAM | {"class_balanced": False, "teacher": "other"},
            "the store has 0.0% of 48 clips",
        ),
        ({"teacher": "other"}, "the store has 0.0% of 48 clips"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    recipe, data, tmp_path, overrides, message
):
    if overrides.get("teacher") == "other":
        overrides = overrides | {"teacher": sample_teacher()}
    with pytest.raises(REFUSALS) as refusal:
        _prepared(recipe, data, tmp_path / "run", **overrides)
    assert re.search(message, str(refusal.value))
    assert not (tmp_path / "run" / "train_log.txt").exists()


NAME_OF = dict(zip(audioset_labels().mids, audioset_labels().names, strict=True))


PLACE_OF = audioset_labels().index


UNDERSTOOD = {
    "ids": lambda mids: mids,
    "names": lambda mids: [NAME_OF[mid].upper() for mid in mids],
    "digits": lambda mids: [str(PLACE_OF[mid]) for mid in mids],
    "numbers": lambda mids: [PLACE_OF[mid] for mid in mids],
    "text": lambda mids: NAME_OF[mids[0]],
    "number": lambda mids: PLACE_OF[mids[0]],
    "parted": lambda mids: [*"Child speech, kid speaking".split(","), NAME_OF[mids[0]]],
    "some": lambda mids: [*mids, "a class of somebody else"],
}


NOT_UNDERSTOOD = {
    "others": lambda mids: ["a tone", "no class"],
    "beyond": lambda mids: [527 + PLACE_OF[mid] for mid in mids],
    "other": lambda mids: "a tone",
}


@pytest.fixture(scope="module")
def relabelled(data, tmp_path_factory):
    """The same clips with other labels in some of the splits, once for each choice."""
    made = {}

    def relabelled(write, splits):
        key = (write, *splits)
        if key not in made:
            made[key] = copy_tones(
                data,
                tmp_path_factory.mktemp("relabelled"),
                lambda split, rows: [
                    row | {"labels": write(row["labels"])} if split in splits else row
                    for row in rows
                ],
            )
        return made[key]

    return relabelled


SPLITS = ("bal_train", "eval")


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("how", UNDERSTOOD)
def test_labels_are_understood_however_they_are_written(
    recipe, data, relabelled, tmp_path, capsys, how, streaming
):
    folder = relabelled(UNDERSTOOD[how], SPLITS)
    options = STREAM | {"class_balanced": False} if streaming else {}
    options |= {"dataset_cache": str(tmp_path / "cache"), "waveform_mix": None}
    options |= {"num_workers": 0, "shuffle_buffer": 0}
    run = _prepared(recipe, folder, tmp_path, **options, teacher=None)
    printed = capsys.readouterr().out
    assert "48 clips, 48 labelled" in printed and "24 clips, 24 labelled" in printed
    clips = (
        iter(run.train_set) if streaming else map(run.train_set.__getitem__, range(3))
    )
    for clip, mid in zip(clips, TONES, strict=False):
        found = clip.labels.nonzero()[:, 0].tolist()
        assert PLACE_OF[mid] in found and clip.labelled
        assert len(found) == (2 if how == "parted" else 1)
    expected = "a class of somebody else (48)" if how == "some" else "indices: 0 is "
    has_more = how in ("some", "digits", "numbers", "number")
    assert ("left out" in printed or "class indices" in printed) == has_more
    assert not has_more or expected in printed


@pytest.mark.parametrize("splits", [("bal_train",), ("eval",)], ids="".join)
@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("how", NOT_UNDERSTOOD)
def test_labels_of_other_classes_are_refused_before_training(
    recipe, data, relabelled, tmp_path, how, splits, streaming
):
    """With a teacher, too: it alone would be learned from."""
    folder = relabelled(NOT_UNDERSTOOD[how], splits)
    options = STREAM | {"class_balanced": False} if streaming else {}
    options |= {"waveform_mix": None, "dataset_cache": str(tmp_path / "cache")}
    for teacher in (None, str(data / "teacher")):
        with pytest.raises(ValueError, match="but none is an id or a name"):
            _prepared(recipe, folder, tmp_path / "run", **options, teacher=teacher)
    assert not (tmp_path / "run" / "train_log.txt").exists()


@pytest.mark.parametrize("how", [*UNDERSTOOD, *NOT_UNDERSTOOD])
def test_labels_are_looked_at_before_a_checkpoint_is_scored(
    recipe, data, relabelled, tmp_path, monkeypatch, how
):
    class Scoring(Exception):
        pass

    def make_brain(*_arguments):
        raise Scoring

    monkeypatch.setattr(recipe, "make_brain", make_brain)
    path = REPOSITORY / "hparams" / "mn10.yaml"
    folder = relabelled((UNDERSTOOD | NOT_UNDERSTOOD)[how], SPLITS)
    overrides = {"dataset": str(folder), "dataset_cache": str(tmp_path / "cache")}
    overrides |= {"output_folder": str(tmp_path / "run"), "pretrained": None}
    hparams = recipe.load_hparams(path, overrides)
    hparams["checkpointer"].save_checkpoint()
    expected = Scoring if how in UNDERSTOOD else SystemExit
    with pytest.raises(expected):
        recipe.evaluate_only(hparams, {"device": "cpu"}, named=False, settings={})


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None}, "there is no teacher, so there is nothing to learn from"),
        ({"kd_weight": 0.0}, "kd_weight=0 ignores the teacher"),
    ],
)
def test_a_run_with_nothing_to_learn_from_does_not_start(
    recipe, data, relabelled, tmp_path, streaming, options, message
):
    folder = relabelled(_nothing, ("bal_train",))
    if streaming:
        options = options | STREAM | {"class_balanced": False}
    options = options | {"waveform_mix": None, "class_balanced": False}
    options |= {"dataset_cache": str(tmp_path / "cache")}
    options = {"teacher": str(data / "teacher")} | options
    with pytest.raises(ValueError, match=message):
        _prepared(recipe, folder, tmp_path / "run", **options)
    with pytest.raises(ValueError, match="Evaluation clips have no labels"):
        _prepared(recipe, relabelled(_nothing, SPLITS), tmp_path / "run", **options)
    assert not (tmp_path / "run" / "train_log.txt").exists()


def _nothing(mids):
    return []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["names", "digits", "numbers", "number", "others"])
def test_recipes_that_learn_nothing_from_labels_take_any(relabelled, tmp_path, how):
    """What is prepared keeps them; a dump says what it cannot verify logits by."""
    write = (UNDERSTOOD | NOT_UNDERSTOOD)[how]
    dataset = relabelled(write, SPLITS)
    options = {"dataset": dataset, "dataset_cache": tmp_path / "cache"}
    options |= {"split": "eval", "folder": tmp_path / "prepared", "num_proc": 1}
    run_recipe("prepare_data", [arguments_of("prepare_data", **options)])
    tables = audioset_vocabulary(), audioset_vocabulary()
    before, after = (
        summarize_rows(load_rows(str(folder), "eval"), table)
        for folder, table in zip((dataset, tmp_path / "prepared"), tables, strict=True)
    )
    assert before.indices == after.indices and before.unknown == after.unknown
    options |= {"folder": tmp_path / "mixes", "num_clips": 2, "clip_seconds": 0.5}
    del options["num_proc"]
    run_recipe("make_transfer_set", [arguments_of("make_transfer_set", **options)])
    student = random_weights(MN(527, width=0.1))
    student.options = {"num_classes": 527, "width": 0.1}
    student.front_end = {"sample_rate": 32000}
    model = TrainedModel(student, audioset_labels(), "multilabel", 0.5)
    scores = {"test": tagging_scores(np.eye(527), np.eye(527))}
    origin = Provenance("teacher", None, "", "", scores)
    write_model_folder(tmp_path / "teacher", model, origin)
    options |= {"teachers": tmp_path / "teacher", "store": tmp_path / "store"}
    options |= {"num_workers": 0, "device": "cpu"}
    del options["folder"], options["num_clips"]
    arguments = arguments_of("dump_teacher_logits", **options)
    recipe = REPOSITORY / "recipes" / "dump_teacher_logits.py"
    printed = RecipeProcess([recipe, *arguments]).wait()  # random, it may look wrong
    if how == "others":
        assert "24 clips, 0 labelled" in printed and "a tone (24)" in printed
    else:
        assert "on the labels of 24 clips" in printed and "left out" not in printed


def test_a_stream_is_looked_at_before_training(recipe, data, tmp_path, capsys):
    _prepared(recipe, data, tmp_path, class_balanced=False, **STREAM)
    text = capsys.readouterr().out
    assert "The stream's first 48 clips: 48 clips, 48 labelled" in text
    assert "Teacher: ok: 100.0% of 48 clips stored" in text


def test_a_comparison_that_cannot_be_made_ends_before_training(data, tmp_path):
    def few_labels(split, rows):
        first = 3 if split == "bal_train" else len(rows)
        return rows[:first] + [row | {"labels": []} for row in rows[first:]]

    options = {"dataset": copy_tones(data, tmp_path / "few", few_labels)}
    options |= {"compare_without_teacher": "True", "clips_per_epoch": "null"}
    text = run_to_end(kd_command(data, tmp_path / "run", **options), expect=1)
    assert "batch_size=8 is more than an epoch's 3 clips" in text
    assert not (tmp_path / "run" / "train_log.txt").exists()


def test_weights_of_another_front_end_are_pointed_out(recipe, tmp_path, capsys):
    for name in ("mn10_as_hop_20_mAP_456.pt", "mn10_im.pt"):  # which tell enough
        (tmp_path / name).touch()
    start_from = {"pretrained": "mn10_as_hop_20", "pretrained_folder": str(tmp_path)}
    hparams = {"start_from": start_from, "log_mel": LogMel()}
    recipe.warn_of_another_front_end(hparams)
    assert "pass --hop_length 640\n" in capsys.readouterr().out
    recipe.warn_of_another_front_end(hparams | {"log_mel": LogMel(hop_length=640)})
    start_from["pretrained"] = "mn10_im"
    recipe.warn_of_another_front_end(hparams)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_unreadable_clips_are_named_and_too_many_fail_the_run(data, tmp_path):
    def one_bad(split, rows):
        if split == "bal_train":
            rows[5]["audio"]["bytes"] = b"no sound"
        return rows

    run = {"dataset": copy_tones(data, tmp_path / "bad", one_bad)}
    run |= {"number_of_epochs": 1}
    command = kd_command(data, tmp_path / "a", max_unreadable_share=0.05, **run)
    assert run_to_end(command).count("Skipping clip bal_train-5: not decodable") == 1
    text = run_to_end(kd_command(data, tmp_path / "b", **run), expect=1)
    assert "1 of 48 clips could not be read, more than the allowed share" in text


@pytest.mark.slow
def test_a_dump_is_verified_and_resumes_where_it_stopped(shared, data, tmp_path):
    command = [
        str(REPOSITORY / "recipes" / "dump_teacher_logits.py"),
        str(REPOSITORY / "hparams" / "dump_teacher_logits.yaml"),
        *("--dataset", str(data), "--dataset_cache", str(data / "cache")),
        *("--clip_seconds", "0.5", "--num_workers", "0", "--batch_size", "8"),
        *("--teachers", str(shared / "checkpoints" / "mn04_as_mAP_432.pt")),
        *("--store", str(tmp_path / "store"), "--device", "cpu", "--split"),
    ]
    text = run_to_end([*command, "bal_train+bal_train"])
    assert "48 rows repeat the video_id of another" in text
    assert "0 of 48 clips are stored already" in text and "\nok: 100.0% of 96" in text
    assert "48 of 72 clips are stored already" in run_to_end(
        [*command, "bal_train+eval"]
    )
    store = LogitsStore(tmp_path / "store")
    assert len(store) == 72 and store.digest("eval-0")


@pytest.mark.slow
def test_the_shipped_logits_are_of_the_sample_as_it_is_made_here():
    store = LogitsStore(sample_teacher())
    counts = {"bal_train": 60, "unlabelled": 500, "eval": 150}
    assert len(store) == sum(counts.values())
    for split, count in counts.items():
        for number in range(count):
            clip = sample_clip(split, number)
            assert store.digest(clip.clip_id) == waveform_digest(clip.waveform)


TRAINING = ["mn10", "dymn10", "quickstart"]


@pytest.mark.parametrize("name", TRAINING)
def test_training_yamls_share_their_options(name):
    """Options are found under the same name in every run's YAML."""

    def options(stem):
        return {*option_places(read_yaml(REPOSITORY / "hparams" / f"{stem}.yaml"))}

    of_parts = {"sample", "sample_folder", "num_labelled", "num_unlabelled", "num_eval"}
    of_parts |= {"prior", "batch_norm_momentum", "__short_run", "start", "step"}
    assert options(name) - of_parts == options("mn10")
