"""Reads official folders of data sets that are described by several tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientat_plugin.data.table_sources import Source
from efficientat_plugin.data.text_tables import read_text_table
from efficientat_plugin.support.plain_text import some_of


def read_fsd50k_folder(folder: Path) -> Source:
    """Reads FSD50K as published on Zenodo, or as ``Fhrozen/FSD50k`` on the hub.

    Arguments
    ---------
    folder : Path
        Holds ``FSD50K.dev_audio``, ``FSD50K.eval_audio`` and ``FSD50K.ground_truth``;
        or ``clips`` and ``labels``.

    Returns
    -------
    Source
        With the columns and splits of ``nguyenvulebinh/fsd50k``, so that the same facts
        fit: "train" and "dev", which make up the published dev, and "eval".

    Raises
    ------
    FileNotFoundError
        If a table is missing.

    Source
    ------
    Fonseca et al., "FSD50K: An Open Dataset of Human-Labeled Sound Events", TASLP 2022;
    https://zenodo.org/record/4060432
    """
    if (folder / "labels").is_dir():
        truth, audio = folder / "labels", "clips/{part}/{name}.wav"
    else:
        truth, audio = folder / "FSD50K.ground_truth", "FSD50K.{part}_audio/{name}.wav"
    _require([truth / "dev.csv", truth / "eval.csv"])
    columns: dict[str, list[Any]] = {
        name: [] for name in ("fname", "file", "labels", "split")
    }
    for part in ("dev", "eval"):
        path = truth / f"{part}.csv"
        table = _columns_of(path, ["fname", "labels"] + ["split"] * (part == "dev"))
        names = table["fname"]
        columns["fname"] += names
        columns["file"] += [audio.format(part=part, name=name) for name in names]
        columns["labels"] += [labels.split(",") for labels in table["labels"]]
        sides = table["split"] if part == "dev" else ["eval"] * len(names)
        columns["split"] += ["dev" if side == "val" else side for side in sides]
    columns |= {"clip_id": columns["fname"], "mp3": columns["file"]}
    return Source("FSD50K", columns, folder)


def read_tau2020_folder(folder: Path) -> Source:
    """Reads TAU Urban Acoustic Scenes 2020 Mobile, development set.

    Arguments
    ---------
    folder : Path
        Holds ``meta.csv``, ``evaluation_setup`` and ``audio``.

    Returns
    -------
    Source
        Its splits are "train" and "test", of the official fold, and "unused"; a group
        is a recording location, a device "a", "b", "c" or "s1" to "s6".

    Raises
    ------
    FileNotFoundError
        If a table is missing.
    ValueError
        If the tables contradict each other.

    Source
    ------
    Heittola, Mesaros and Virtanen, "Acoustic scene classification in DCASE 2020
    Challenge", DCASE 2020; https://zenodo.org/record/3819968
    """
    setup = folder / "evaluation_setup"
    meta = folder / "meta.csv"
    train = setup / "fold1_train.csv"
    # The same clips as in fold1_test.csv, with labels; copies may have one only.
    test = setup / "fold1_evaluate.csv"
    if not test.is_file():
        test = setup / "fold1_test.csv"
    _require([meta, train, test])
    table = _columns_of(meta, ["filename", "scene_label", "identifier", "source_label"])
    split_of: dict[str, str] = {}
    for split, path in (("train", train), ("test", test)):
        for name in _columns_of(path, ["filename"])["filename"]:
            if split_of.setdefault(name, split) != split:
                raise ValueError(
                    f"{name} is in both {train} and {test}; take all tables from one "
                    "release"
                )
    absent = sorted(set(split_of) - set(table["filename"]))
    if absent:
        raise ValueError(
            f"{len(absent)} files of {setup} are not in {meta}: "
            f"{some_of(absent)}; take all tables from one release"
        )
    columns: dict[str, Sequence[Any]] = {
        "clip_id": [Path(name).stem for name in table["filename"]],
        "file": table["filename"],
        "label": table["scene_label"],
        "group": table["identifier"],
        "device": table["source_label"],
        "split": [split_of.get(name, "unused") for name in table["filename"]],
    }
    return Source("TAU Urban Acoustic Scenes 2020 Mobile", columns, folder)


def read_urbansound8k_folder(folder: Path) -> Source:
    """Reads UrbanSound8K, whose ten folds must be used as they are.

    Arguments
    ---------
    folder : Path
        Holds ``metadata/UrbanSound8K.csv`` and ``audio/fold1`` to ``audio/fold10``; or
        the table and the folds themselves.

    Returns
    -------
    Source
        A group is a recording on Freesound. The times of a slice in it (``start`` and
        ``end``) are left out, because the files are the slices.

    Raises
    ------
    FileNotFoundError
        If the table is missing.
    ValueError
        If it lacks a column.

    Source
    ------
    Salamon, Jacoby and Bello, "A Dataset and Taxonomy for Urban Sound Research", ACM MM
    2014; https://urbansounddataset.weebly.com/urbansound8k.html
    """
    tables = [folder / "metadata" / "UrbanSound8K.csv", folder / "UrbanSound8K.csv"]
    path = next((table for table in tables if table.is_file()), tables[0])
    _require([path])
    table = _columns_of(path, ["slice_file_name", "fsID", "fold", "class"])
    audio = "audio/" if (folder / "audio").is_dir() else ""
    pairs = zip(table["fold"], table["slice_file_name"], strict=True)
    files = [f"{audio}fold{fold}/{name}" for fold, name in pairs]
    columns = {name: table[name] for name in table if name not in ("start", "end")}
    columns |= {"file": files, "slice_file_name": files, "group": table["fsID"]}
    return Source("UrbanSound8K", columns, folder)


def _columns_of(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    table = read_text_table(path)
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(table)}"
        )
    return table


def _require(paths: Sequence[Path]) -> None:
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)} is missing; pass the unpacked folder, with its "
            "tables"
        )
