"""Data sets that are known by name, and the facts of each."""

import csv
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hyperpyyaml import load_hyperpyyaml
from small_tables import (
    LABELS,
    SEEDS,
    sound_bytes,
    write_csv,
    write_labelled,
    write_sound,
)

from efficientat_plugin.data import rows
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.facts import Facts
from efficientat_plugin.data.labelled import runs_of
from efficientat_plugin.data.summary import describe
from efficientat_plugin.data.tables import label_table, read_table

FACTS = Path(__file__).resolve().parents[1] / "hparams" / "data"


def facts_of(name):
    with open(FACTS / f"{name}.yaml", encoding="utf-8") as file:
        return load_hyperpyyaml(file)


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_real_esc50_reads_by_its_facts(shared, caplog):
    found = read_table(shared / "data" / "esc50", **facts_of("esc50"))
    assert len(found) == 314
    assert "has 314 of 2000 clips" in caplog.text
    assert set(found["fold"][:]) == {"1", "2", "3"}
    table = label_table(found, facts_of("esc50")["classes"])
    with open(shared / "data" / "esc50" / "esc50.csv", encoding="utf-8") as file:
        rows_ = list(csv.DictReader(file))
    # The order of the facts is that of the targets.
    for row, clip in zip(rows_, found, strict=True):
        assert table.index[clip["labels"][0]] == int(row["target"])
        assert clip["group"] == row["src_file"]
        assert clip["video_id"] == row["filename"].removesuffix(".flac")
    clip = Clips(found, ClipReader(table, 5.0))[0]
    assert clip.waveform.abs().max() > 0 and clip.labels.sum() == 1
    summary = describe(found)
    assert summary.seconds == (5.0, 5.0, 5.0) and not summary.num_unreadable
    assert summary.hours == pytest.approx(314 * 5 / 3600)


def hub_of(monkeypatch, parts):
    """A hub that knows one data set."""

    def load_dataset(dataset, config, split, streaming, cache_dir):
        assert (dataset, config, split, streaming) == ("some/one", None, None, False)
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(rows.datasets, "load_dataset", load_dataset)


def esc50_table():
    names = list(LABELS)
    return pa.table(
        {
            "filename": [f"{name}.wav" for name in names],
            "fold": pa.array([int(name[1]) for name in names]),
            "target": pa.array([0, 5, 0, 3, 5, 0]),
            "category": [LABELS[name] for name in names],
            "esc10": [False] * len(names),
            "src_file": pa.array([ord(name[0]) for name in names]),
            "take": ["A"] * len(names),
            "audio": pa.array(
                [{"bytes": sound_bytes(name), "path": None} for name in names], STRUCT
            ),
        }
    )


def test_esc50_of_the_hub_is_that_of_a_folder(tmp_path, monkeypatch, caplog):
    part = datasets.Dataset(esc50_table())
    hub_of(monkeypatch, {"train": part.cast_column("audio", datasets.Audio())})
    found = read_table("some/one", **facts_of("esc50"))
    write_labelled(tmp_path / "audio")
    text = esc50_table().drop_columns("audio").to_pylist()
    lines = [list(row.values()) for row in text]
    write_csv(tmp_path / "meta" / "esc50.csv", list(text[0]), lines)
    local = read_table(tmp_path, **facts_of("esc50"))
    assert "split" not in found.column_names  # folds instead
    for one, other in zip(found, local, strict=True):
        assert {**one, "audio": 0} == {**other, "audio": 0}
    assert "has 6 of 2000 clips" in caplog.text


def fsd50k_part(names):
    return pa.table(
        {
            "fname": pa.array([SEEDS[name] for name in names]),
            "labels": ["Dog,Animal" if name < "b" else "Rain" for name in names],
            "mids": ["/m/0bt9lr,/m/0jbk" for _ in names],
            "mp3": pa.array(
                [list(sound_bytes(name)) for name in names], pa.list_(pa.uint8())
            ),
        }
    )


FSD50K_PARTS = {"train": ["a1", "b1"], "dev": ["a2"], "eval": ["c1", "c2"]}


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_fsd50k_of_the_hub_reads_by_its_facts(place, tmp_path, monkeypatch):
    parts = {split: fsd50k_part(names) for split, names in FSD50K_PARTS.items()}
    if place == "hub":
        hub_of(monkeypatch, {s: datasets.Dataset(part) for s, part in parts.items()})
    else:
        for split, part in parts.items():
            pq.write_table(part, tmp_path / f"{split}-00000-of-00001.parquet")
    dataset = "some/one" if place == "hub" else tmp_path
    found = read_table(dataset, cache_dir=str(tmp_path / "c"), **facts_of("fsd50k"))
    assert found["split"][:] == ["train", "train", "valid", "test", "test"]
    assert found["video_id"][:] == ["0", "2", "1", "4", "5"]
    assert found["labels"][:2] == [["Dog", "Animal"], ["Rain"]]
    assert found[2]["audio"] == {"bytes": sound_bytes("a2"), "path": None}


def fsd50k_folder(folder, layout="published"):
    truth, audio = {
        "published": ("FSD50K.ground_truth", "FSD50K.{}_audio"),
        "copy": ("labels", "clips/{}"),
    }[layout]
    header = ["fname", "labels", "mids"]
    dev = [["0", "Dog,Animal", "/m/0bt9lr,/m/0jbk", "train"], ["1", "Dog", "", "val"]]
    write_csv(folder / truth / "dev.csv", [*header, "split"], dev)
    write_csv(folder / truth / "eval.csv", header, [["2", "Animal", "/m/0jbk"]])
    write_csv(folder / truth / "vocabulary.csv", ["0", "Animal", "/m/0jbk"], [])
    for fname, part in (("0", "dev"), ("1", "dev"), ("2", "eval")):
        name = list(LABELS)[int(fname)]
        write_sound(folder / audio.format(part) / f"{fname}.wav", name)
    return folder / truth


@pytest.mark.parametrize("layout", ["published", "copy"])
def test_the_folder_of_fsd50k_reads_by_the_facts_of_the_hub(layout, tmp_path):
    truth = fsd50k_folder(tmp_path, layout)
    found = read_table(tmp_path, **facts_of("fsd50k"))
    assert found["video_id"][:] == ["0", "1", "2"]
    assert found["split"][:] == ["train", "valid", "test"]
    assert found["labels"][:] == [["Dog", "Animal"], ["Dog"], ["Animal"]]
    assert read_table(tmp_path)["split"][:] == ["train", "dev", "eval"]
    write_csv(truth / "dev.csv", ["fname", "labels"], [["0", "Dog"]])
    with pytest.raises(ValueError, match="has no column split; it has fname, lab"):
        read_table(tmp_path)
    (truth / "dev.csv").unlink()
    with pytest.raises(FileNotFoundError, match="dev.csv is missing; pass the unpack"):
        read_table(tmp_path, form="fsd50k_folder")


def openmic_part(names, classes):
    zeros = [0.5] * len(classes)
    rows_ = []
    for name in names:
        probability, mask = zeros.copy(), [0] * len(classes)
        probability[SEEDS[name]], mask[SEEDS[name]] = 0.9, 1
        probability[19], mask[19] = 0.1, 1
        rows_.append(
            {
                "filename": name,
                "true": probability,
                "mask": mask,
                "mp3_bytes": sound_bytes(name),
            }
        )
    schema = pa.schema(
        [
            ("filename", pa.string()),
            ("true", pa.list_(pa.float32(), len(classes))),
            ("mask", pa.list_(pa.int32(), len(classes))),
            ("mp3_bytes", pa.binary()),
        ]
    )
    return pa.Table.from_pylist(rows_, schema)


def test_openmic_says_what_was_judged(tmp_path, monkeypatch):
    facts = facts_of("openmic")
    classes = facts["classes"]
    assert len(classes) == 20
    for split, names in {"train": ["a1", "b1"], "test": ["c2"]}.items():
        path = tmp_path / "data" / f"shard_{split}_0.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(openmic_part(names, classes), path)
    found = read_table(tmp_path, cache_dir=str(tmp_path / "cache"), **facts)
    assert found["split"][:] == ["train", "train", "test"]
    # 0.5 of a class that nobody judged is no label.
    assert found["labels"][:] == [["accordion"], ["bass"], ["cymbals"]]
    assert found["judged"][:] == [[*names, "voice"] for names in found["labels"]]
    assert found[2]["audio"]["bytes"] == sound_bytes("c2")


def tau2020_folder(folder, evaluate=True):
    names = [f"audio/{label}-{n}-a.wav" for n, label in enumerate(("bus", "park") * 2)]
    for number, name in enumerate(names):
        write_sound(folder / name, list(LABELS)[number])
    labels = [name[6:].partition("-")[0] for name in names]
    meta = [
        [n, x, f"oslo-{p}", "s1"]
        for p, (n, x) in enumerate(zip(names, labels, strict=False))
    ]
    header = ["filename", "scene_label", "identifier", "source_label"]
    write_csv(folder / "meta.csv", header, meta, "\t")
    setup = folder / "evaluation_setup"
    write_csv(setup / "fold1_train.csv", header[:2], [r[:2] for r in meta[:2]], "\t")
    if evaluate:
        test = setup / "fold1_evaluate.csv"
        write_csv(test, header[:2], [meta[2][:2]], "\t")
    else:
        write_csv(setup / "fold1_test.csv", header[:1], [meta[2][:1]], "\t")
    return folder


@pytest.mark.parametrize("evaluate", [True, False])
def test_tau2020_reads_by_its_facts(evaluate, tmp_path):
    folder = tau2020_folder(tmp_path, evaluate)
    found = read_table(folder, **facts_of("tau2020"))
    assert found["video_id"][:] == ["bus-0-a", "park-1-a", "bus-2-a"]
    assert found["labels"][:] == [["bus"], ["park"], ["bus"]]
    assert found["split"][:] == ["train", "train", "test"]
    assert found["group"][:] == ["oslo-0", "oslo-1", "oslo-2"]
    assert set(found["device"][:]) == {"s1"}


def test_tau2020_is_refused_where_its_tables_do_not_fit(tmp_path):
    setup = tau2020_folder(tmp_path) / "evaluation_setup"
    train = ["audio/bus-0-a.wav", "bus"]
    write_csv(setup / "fold1_evaluate.csv", ["filename", "scene_label"], [train], "\t")
    with pytest.raises(ValueError, match="bus-0-a.wav is in both .*fold1_train.csv a"):
        read_table(tmp_path, **facts_of("tau2020"))
    other = ["audio/bus-9-a.wav", "bus"]
    write_csv(setup / "fold1_evaluate.csv", ["filename", "scene_label"], [other], "\t")
    with pytest.raises(
        ValueError, match="1 files of .* are not in .*meta.csv: audio/b"
    ):
        read_table(tmp_path, **facts_of("tau2020"))
    (setup / "fold1_evaluate.csv").unlink()
    with pytest.raises(FileNotFoundError, match="fold1_test.csv is missing"):
        read_table(tmp_path, **facts_of("tau2020"))


@pytest.mark.parametrize("path", sorted(FACTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_facts_are_what_read_table_takes(path, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text(f"data: !include:{path}\nclip_seconds: !ref <data[clip_seconds]>\n")
    with open(run, encoding="utf-8") as file:
        loaded = load_hyperpyyaml(file)
    assert loaded["clip_seconds"] == loaded["data"]["clip_seconds"] > 0
    assert Facts(**loaded["data"]).class_names == loaded["data"]["classes"]
    assert len(set(loaded["data"]["classes"])) == len(loaded["data"]["classes"])


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
