"""Data sets that are known by name, and the facts of each."""

import shutil
from collections import Counter

import datasets
import pytest
from hyperpyyaml import load_hyperpyyaml
from known_data import COPIES, FACTS, RATE, facts_of, fsd50k_folder, tau2020
from small_tables import write_csv, write_sound

from efficientat_plugin.data import rows
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labelled import runs_of
from efficientat_plugin.data.summary import describe
from efficientat_plugin.data.tables import label_table, read_table


@pytest.mark.parametrize("path", sorted(FACTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_facts_are_what_read_table_takes(path, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text(f"data: !include:{path}\nclip_seconds: !ref <data[clip_seconds]>\n")
    with open(run, encoding="utf-8") as file:
        loaded = load_hyperpyyaml(file)
    assert loaded["clip_seconds"] == loaded["data"]["clip_seconds"] > 0
    assert Facts(**loaded["data"]).class_names == loaded["data"]["classes"]
    assert len(set(loaded["data"]["classes"])) == len(loaded["data"]["classes"])


READ = {  # clips of each split, and labels of the first two
    "esc50": ({}, [["dog"], ["rooster"]]),
    "fsd50k": ({"train": 8, "valid": 2, "test": 6}, [["Rain"], ["Bark", "Dog"]]),
    "fsd50k_folder": ({"train": 8, "valid": 2, "test": 4}, [["Rain"], ["Bark", "Dog"]]),
    "openmic": ({"train": 8, "test": 6}, [[], ["banjo"]]),
    "tau2020": ({"train": 6, "test": 6}, [["airport"], ["bus"]]),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_reads_by_its_facts(name, tmp_path, caplog):
    facts, write = COPIES[name]
    dataset = write(tmp_path)["dataset"]
    cache = str(tmp_path / "cache")
    found = read_table(dataset, cache_dir=cache, **facts_of(facts))
    splits, labels = READ[name]
    if splits:
        assert Counter(found["split"]) == splits
    assert found["labels"][:2] == labels
    assert f"has {len(found)} of " in caplog.text
    table = label_table(found, facts_of(facts)["classes"])
    clips = Clips(found, ClipReader(table, 0.5, RATE))
    for place, names in enumerate(found["labels"]):
        assert clips[place].waveform.abs().max() > 0
        assert clips[place].labels.sum() == len(names)
    if name == "esc50":
        assert Counter(found["fold"]) == dict.fromkeys("123", 4)
        assert len(set(found["group"])) == 6
    elif name == "openmic":  # 0.5 of a class that nobody judged is no label
        places = (number % 3 for number in range(14))
        assert found["judged"][:] == [[table.names[place]] for place in places]
    elif name == "tau2020":
        assert Counter(found["device"]) == dict.fromkeys(("a", "s1", "s4"), 4)
        assert found["group"][:2] == ["oslo-0", "oslo-1"]
        assert found["video_id"][0] == "airport-oslo-0-a"
    else:
        assert found["video_id"][:] == [str(number) for number in range(len(found))]


@pytest.mark.parametrize("name", ["esc50", "fsd50k"])
def test_a_data_set_of_the_hub_is_that_of_a_folder(name, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    COPIES[name][1](tmp_path / "set")
    cache = str(tmp_path / "cache")
    local = read_table(tmp_path / "set", cache_dir=cache, **facts_of(name))
    if name == "fsd50k":
        files = {
            path.name.split("-")[0]: str(path) for path in tmp_path.rglob("*.par*")
        }
        parts = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
    else:
        table = tmp_path / "set" / "meta" / "esc50.csv"
        part = datasets.load_dataset("csv", data_files=str(table), cache_dir=cache)
        columns = part["train"].to_dict()
        paths = [table.parents[1] / "audio" / name for name in columns["filename"]]
        audio = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        parts = {"train": datasets.Dataset.from_dict({**columns, "audio": audio})}

    def load_dataset(dataset, config, split, streaming, cache_dir):
        assert (dataset, config, split, streaming) == ("some/one", None, None, False)
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(rows.datasets, "load_dataset", load_dataset)
    found = read_table("some/one", **facts_of(name))
    for one, other in zip(found, local, strict=True):
        assert {**one, "audio": 0} == {**other, "audio": 0}
        assert one["audio"]["bytes"]


def test_real_esc50_reads_by_its_facts(shared):
    found = read_table(shared / "data" / "esc50", **facts_of("esc50"))
    assert len(found) == 314 and set(found["fold"]) == {"1", "2", "3"}
    summary = describe(found)
    assert summary.seconds == (5.0, 5.0, 5.0) and not summary.num_unreadable
    assert summary.hours == pytest.approx(314 * 5 / 3600)
    # The order of the facts is that of the targets.
    whole = read_table(
        shared / "data" / "esc50", label_column="target", audio_folder="audio"
    )
    classes = facts_of("esc50")["classes"]
    for one, other in zip(found, whole, strict=True):
        assert [str(classes.index(name)) for name in one["labels"]] == other["labels"]


def test_the_folder_of_fsd50k_is_known_by_its_tables(tmp_path):
    fsd50k_folder(tmp_path)
    truth = tmp_path / "FSD50K.ground_truth"
    expected = read_table(tmp_path)
    assert Counter(expected["split"]) == {"train": 8, "dev": 2, "eval": 4}
    copy = tmp_path / "copy"
    shutil.copytree(truth, copy / "labels")
    write_csv(copy / "labels" / "vocabulary.csv", ["0", "Bark", "/m/0"], [])
    for part in ("dev", "eval"):
        shutil.copytree(tmp_path / f"FSD50K.{part}_audio", copy / "clips" / part)
    assert read_table(copy)["labels"][:] == expected["labels"][:]
    write_csv(truth / "dev.csv", ["fname", "labels"], [["0", "Dog"]])
    with pytest.raises(ValueError, match="has no column split; it has fname, lab"):
        read_table(tmp_path)
    (truth / "dev.csv").unlink()
    with pytest.raises(FileNotFoundError, match="dev.csv is missing; pass the unpack"):
        read_table(tmp_path)


def test_tau2020_is_refused_where_its_tables_do_not_fit(tmp_path):
    tau2020(tmp_path)
    setup = tmp_path / "evaluation_setup"
    (setup / "fold1_evaluate.csv").rename(setup / "fold1_test.csv")
    assert Counter(read_table(tmp_path)["split"]) == {"train": 6, "test": 6}
    name = read_table(tmp_path)["audio"][0]["path"].removeprefix(f"{tmp_path}/")
    for other, message in (
        (name, "airport-oslo-0-a.wav is in both .*fold1_train.csv and"),
        ("audio/x.wav", "1 files of .* are not in .*meta.csv: audio/x"),
    ):
        write_csv(setup / "fold1_test.csv", ["filename"], [[other]])
        with pytest.raises(ValueError, match=message):
            read_table(tmp_path)
    (setup / "fold1_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match="fold1_test.csv is missing"):
        read_table(tmp_path)


@pytest.mark.parametrize("below", [("metadata", "audio"), ("", "")])
def test_urbansound8k_is_read_by_its_folds(below, tmp_path):
    meta, audio = (tmp_path / name for name in below)
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class".split(",")
    lines, classes = [], ("cat", "dog", "train")
    for fold in (1, 2, 10):
        for number, name in enumerate(classes):
            file = f"{fold}{number}-{number}-0-0.wav"
            write_sound(audio / f"fold{fold}" / file)
            lines.append([file, f"{fold}{number}", 50.5, 54.5, 1, fold, number, name])
    write_csv(meta / "UrbanSound8K.csv", header, lines)
    rows = read_table(tmp_path)
    assert len(rows) == 9 and label_table(rows).names == classes
    assert "start" not in rows.column_names
    same = read_table(tmp_path, audio_column="slice_file_name", audio_folder=below[1])
    assert same["audio"][:] == rows["audio"][:]
    assert sorted(runs_of(rows)) == ["fold1", "fold10", "fold2"]
    with pytest.raises(ValueError, match="are folds .* name the table"):
        read_table(audio, form="class_folders")
