"""Reads a folder as one table, by the names of its folders and tables."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.data.audio_column import embedded_column
from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES
from efficientat_plugin.data.columns import AUDIO_NAMES, LABEL_NAMES, choose_column
from efficientat_plugin.data.dataset_facts import FORMS, Facts
from efficientat_plugin.data.folders import is_hidden, walk_sounds
from efficientat_plugin.data.splits import SIDES, split_of_file, split_word
from efficientat_plugin.data.table_sources import (
    TABLE_SUFFIXES,
    Source,
    find_tables,
    read_table_file,
)
from efficientat_plugin.data.text_tables import text_of
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

FOLD = re.compile(r"fold[ _-]?0*(\d+)", re.IGNORECASE)
# Such as the noise of Speech Commands, which is not a word.
NO_CLASS = re.compile(r"_.+_")
# Split lists of Speech Commands, with one file name per line.
LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}
MAX_TABLES = 20  # if there are more, each describes one clip


class Marks(NamedTuple):
    """Holds the split or fold of each path, as its first folders name it."""

    role: str  # "split" or "fold"
    values: list[str]
    depth: int  # of the folders below


def read_marks(paths: Sequence[Sequence[str]]) -> Marks | None:
    """Reads splits or folds from the first folders of paths, if all of them name one.

    Each path is given by its parts, with the file's name last.

    Example
    -------
    >>> read_marks([("fold1", "dog", "a.wav"), ("fold2", "b.wav")])
    Marks(role='fold', values=['1', '2'], depth=1)
    >>> read_marks([("train", "a.wav"), ("bus", "b.wav")]) is None
    True
    """
    for depth in range(min(map(len, paths), default=1) - 1):
        folders = dict.fromkeys(path[depth] for path in paths)
        splits = {name: split_word(name) for name in folders}
        # A class may be "train" or "train horn"; splits differ in this word only.
        rests = {n.lower().replace(word or "", "", 1) for n, word in splits.items()}
        if all(splits.values()) and len(rests) == 1:
            return Marks(
                "split", [str(splits[path[depth]]) for path in paths], depth + 1
            )
        folds = {name: FOLD.fullmatch(name) for name in folders}
        if all(folds.values()):
            numbers = {name: match[1] for name, match in folds.items() if match}
            return Marks("fold", [numbers[path[depth]] for path in paths], depth + 1)
        if len(folders) > 1:
            break
    return None


def warn_of_unused_marks(paths: Sequence[Sequence[str]], source: object) -> None:
    """Warns of folders in paths that are named like splits but not used as such."""
    folders = dict.fromkeys(name for path in paths for name in path[:-1])
    words = {name: word for name in folders if (word := split_word(name))}
    if not _has_train_and_more(words.values()):
        return
    places = ("/".join(path[:-1]) for path in paths if not {*words} & {*path[:-1]})
    others = some_of(dict.fromkeys(place or "." for place in places))
    logger.warning(
        "%s: folders %s are named like splits, but %s, so they are not used as splits "
        "and may be read as classes; name them train, valid and test and put every "
        "clip into one of them, or write a table with a column of splits "
        "(split_column)",
        source,
        some_of(sorted(words)),
        f"other clips are in {others}" if others else "not alike",
    )


def _has_train_and_more(words: Iterable[str]) -> bool:
    return len({SIDES.get(word) == "train" for word in words}) == 2


def read_sounds(folder: Path) -> Source:
    """Reads all audio below a folder, without labels."""
    names = walk_sounds(folder)
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no audio ({', '.join(AUDIO_SUFFIXES)})"
        )
    return Source(folder.name, {"file": names, "label": [None] * len(names)}, folder)


def read_class_folders(folder: Path) -> Source:
    """Reads ``<class>/.../<clip>``, inside or around folders of splits or folds.

    Folders such as ``_background_noise_`` are not classes. The lists of Speech Commands
    (``testing_list.txt``) are read as splits.
    """
    names = walk_sounds(folder)
    parts = [name.split("/") for name in names if "/" in name]
    if not parts:
        found = some_of(sorted(entry.name for entry in folder.iterdir()))
        raise FileNotFoundError(
            f"{folder} holds neither one table ({', '.join(TABLE_SUFFIXES)}) nor class "
            f"folders with audio ({', '.join(AUDIO_SUFFIXES)}); it has "
            f"{found or 'no files'}; for sound without labels, pass form=sounds"
        )
    _warn_of_empty(folder, {part[0] for part in parts})
    num_outside = len(names) - len(parts)
    parts, depth, marks = _levels(parts, folder)
    # Files that are not below the level of classes have none.
    labels = [part[depth] if len(part) > depth + 1 else None for part in parts]
    if marks and len({*labels} - {None}) < 2:
        some = some_of(dict.fromkeys(part[marks.depth - 1] for part in parts))
        tables = some_of(path.relative_to(folder) for path in find_tables(folder))
        others = tables and f"; tables left out: {tables}"
        raise ValueError(
            f"the folders of {folder} are {marks.role}s ({some}) and contain no "
            f"class folders{others}; name the table that has the labels, or pass the "
            "folder that contains it, or pass form=sounds"
        )
    columns: dict[str, list[Any]] = {"file": ["/".join(part) for part in parts]}
    if marks:
        columns[marks.role] = marks.values
    origins = dict.fromkeys(("split", "fold"), "the names of folders")
    if lists := [name for name in LISTS if (folder / name).is_file()]:
        side_of = {
            line.strip(): LISTS[name]
            for name in lists
            for line in text_of(folder / name).splitlines()
        }
        columns["split"] = [side_of.get(name, "train") for name in columns["file"]]
        origins["split"] = f"the lists of clips ({some_of(lists)})"
    if num_outside := num_outside + labels.count(None):
        logger.warning("%d clips of %s are in no class folder", num_outside, folder)
    no_class = Counter(name for name in labels if name and NO_CLASS.fullmatch(name))
    if no_class:
        logger.warning(
            "%s: left out, because names in underscores are not classes: %s; rename "
            "folders that are classes",
            folder,
            some_of(f"{name} ({count} clips)" for name, count in no_class.items()),
        )
    columns["label"] = labels
    kept = [row for row, name in enumerate(labels) if name and name not in no_class]
    columns = {name: [values[row] for row in kept] for name, values in columns.items()}
    return Source(folder.name, columns, folder, origins=origins)


def _levels(
    parts: list[list[str]], folder: Path
) -> tuple[list[list[str]], int, Marks | None]:
    """Finds the depth of class folders, and the splits or folds above or below it.

    Returns the paths, too, without those outside the folders of splits, if these share
    classes.
    """
    parts = _without_others(parts, folder)
    if marks := read_marks(parts):
        return parts, marks.depth, marks
    most = min(map(len, parts)) - 2
    depth = next((n for n in range(most) if len({part[n] for part in parts}) > 1), 0)
    marks = read_marks([part[depth + 1 :] for part in parts])
    if marks and len({*marks.values}) > 1:
        return parts, depth, marks._replace(depth=depth + 1 + marks.depth)
    warn_of_unused_marks(parts, folder)
    return parts, 0, None


def _without_others(parts: list[list[str]], folder: Path) -> list[list[str]]:
    """Leaves out paths outside the folders of splits, if these share classes."""
    for depth in range(min(map(len, parts)) - 1):
        folders = Counter(part[depth] for part in parts)
        if len(folders) > 1:
            break
    else:
        return parts
    splits = {name: word for name in folders if (word := split_word(name))}
    rests = {name.lower().replace(word, "", 1) for name, word in splits.items()}
    classes = {name: set[str]() for name in splits}
    for part in parts:
        if part[depth] in splits and part[depth + 2 :]:
            classes[part[depth]].add(part[depth + 1])
    if (
        len(splits) == len(folders)
        or len(rests) != 1
        or not _has_train_and_more(splits.values())
        or not set.intersection(*classes.values())
    ):
        return parts
    others = {name: count for name, count in folders.items() if name not in splits}
    logger.warning(
        "%s: left out, because they are not in the folders of splits (%s): %s; "
        "move them into one of these to use them",
        folder,
        some_of(splits),
        some_of(f"{name} ({count} clips)" for name, count in others.items()),
    )
    return [part for part in parts if part[depth] in splits]


def find_layout(folder: Path, facts: Facts) -> Source | None:
    """Reads the table of a folder that contains tables, class folders or both.

    A table is used if it has columns of file names and labels. Several are joined if
    their names or those of their folders are splits: ``train.csv``, ``test.csv``, or
    ``train/metadata.csv``. Without any table, class folders give the labels. Returns
    None for several Parquet files, which ``read_rows`` reads.

    Raises
    ------
    FileNotFoundError, ValueError
        If nothing of that kind is found, or the folder is ambiguous.
    """
    found = find_tables(folder)
    if len(found) > 1 and all(file.suffix.lower() == ".parquet" for file in found):
        if not all(file.stem == "metadata" for file in found):
            return None
    sources: dict[Path, Source] = {}
    for path in found[: MAX_TABLES + 1]:
        try:
            source = read_table_file(path, folder, facts)
            choose_column(source.columns, facts.label_column, LABEL_NAMES, "", "")
            if embedded_column(source, facts.audio_column) is None:
                choose_column(source.columns, facts.audio_column, AUDIO_NAMES, "", "")
        except ValueError:
            continue
        sources[path] = source
    splits = {path: split_of_file(path, folder) for path in sources}
    if len(set(splits.values())) > 1 and None not in splits.values():
        _warn_of_others(found, sources, folder)
        return _joined(folder, sources, splits, facts.audio_column)
    if len(sources) == 1 and len(found) <= MAX_TABLES:
        _warn_of_others(found, sources, folder)
        return next(iter(sources.values()))
    is_table = any(path.parent == folder for path in sources)
    if not is_table and not (found and (facts.audio_column or facts.label_column)):
        try:
            classes = read_class_folders(folder)
        except FileNotFoundError:
            if not found:
                raise
        else:
            # A single "class" beside tables is a folder with all of the audio.
            if not found or len(set(classes.columns["label"])) > 1:
                _warn_of_others(found, (), folder)
                return classes
    if len(found) == 1:
        return read_table_file(found[0], folder, facts)  # which raises its own error
    names = some_of(file.relative_to(folder) for file in found)
    raise ValueError(
        f"{folder} holds {len(found)} tables ({names}); name one of them, or pass "
        f"the layout of the folder as form ({', '.join(FORMS[1:])})"
    )


def _warn_of_empty(folder: Path, full: set[str]) -> None:
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    if empty := {name for name in folders - full if not is_hidden(name)}:
        some = some_of(sorted(empty))
        logger.warning("%d folders of %s hold no audio: %s", len(empty), folder, some)


def _warn_of_others(found: Sequence[Path], used: Iterable[Path], folder: Path) -> None:
    if others := set(found) - set(used):
        logger.warning(
            "%s: left out tables that have no columns of files and labels: %s; name a "
            "table to use it",
            folder,
            some_of(sorted(path.relative_to(folder) for path in others)),
        )


def _joined(
    folder: Path,
    sources: Mapping[Path, Source],
    splits: Mapping[Path, str | None],
    audio_column: str | None,
) -> Source:
    """Joins the tables of splits into one, with file names relative to the folder."""
    below = defaultdict(list)  # paths by file name
    for name in walk_sounds(folder):
        below[Path(name).name].append(name)
    names = {name: None for source in sources.values() for name in source.columns}
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "split")}
    for path, source in sources.items():
        column = choose_column(source.columns, audio_column, AUDIO_NAMES, "", "")
        table, split = dict(source.columns), splits[path]
        beside = path.parent.relative_to(folder)
        table[column] = [
            _place_of(str(name), folder, beside, split, below) for name in table[column]
        ]
        num_rows = len(table[column])
        table["split"] = [split] * num_rows
        for name, values in columns.items():
            values += table.get(name, [None] * num_rows)
    counts = Counter(columns["split"])
    some = ", ".join(f"{name} ({count} rows)" for name, count in counts.items())
    logger.info("%s: splits given by the names of tables and folders: %s", folder, some)
    origins = {"split": "the names of tables and folders"}
    return Source(folder.name, columns, folder, origins=origins)


def _place_of(
    name: str,
    folder: Path,
    beside: Path,
    split: str | None,
    below: Mapping[str, Sequence[str]],
) -> str:
    """Finds a file of a table: beside the table, or in a folder of its split."""
    for place in (beside / name, Path(name)):
        if (folder / place).is_file():
            return place.as_posix()
    alike = below.get(name, [])
    if len(alike) > 1:
        parents = {place: map(split_word, place.split("/")[:-1]) for place in alike}
        own = [place for place in alike if split in parents[place]]
        if len(own) != 1:
            raise ValueError(
                f"{folder} has several files {shown(name)} ({some_of(alike)}), of "
                f"which any may be meant by the table of {split}; write the folder "
                f"into the table, too, as in {shown(alike[0])}"
            )
        alike = own
    return alike[0] if alike else (beside / name).as_posix()
