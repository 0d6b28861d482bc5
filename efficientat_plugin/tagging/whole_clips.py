"""Scores a tagger on whole clips of any length, and chooses the clips to score."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.decoding import UnreadableClip, sound_of
from efficientat_plugin.data.digests import digest_of_clips, sounds_of
from efficientat_plugin.data.labels import audioset_vocabulary, most_frequent
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.data.splits import (
    Split,
    given_split,
    split_by_fold,
    split_digest,
    split_rows,
)
from efficientat_plugin.evaluation.metrics import ClassificationStats, TaggingStats
from efficientat_plugin.tagging.base import SoundTagger

ALL = "all"  # instead of the name of a split


def whole_clip_stats(
    tagger: SoundTagger, rows: datasets.Dataset, skipped: SkippedClips
) -> TaggingStats:
    """Scores a tagger on clips from beginning to end.

    Clips longer than the tagger's are scored in windows, whose probabilities are
    averaged; clips without a label among the tagger's classes are left out.

    Arguments
    ---------
    tagger : SoundTagger
        An ``AudioTagger``, or a ``runtime.Tagger`` of an exported file.
    rows : datasets.Dataset
        From ``read_table``; labels are ids or names of the tagger's classes.
    skipped : SkippedClips
        Receives the clips that cannot be read.

    Returns
    -------
    TaggingStats
        ``ClassificationStats`` if the tagger is multiclass.

    Raises
    ------
    TooManyUnreadable
        If too many clips cannot be read.

    Example
    -------
    >>> rows = read_table("clips.csv")  # doctest: +SKIP
    >>> stats = whole_clip_stats(tagger, rows, SkippedClips(0.01))  # doctest: +SKIP
    >>> stats.summarize().mAP  # doctest: +SKIP
    0.52
    """
    table = tagger.labels.with_names()
    multiclass = tagger.target == "multiclass"
    stats = ClassificationStats() if multiclass else TaggingStats()
    for row, scores in _scored(tagger, _labelled(tagger, rows), skipped):
        indices, _ = table.indices(row["labels"])
        judged = torch.ones(len(table))
        if row.get("judged") is not None:
            known, _ = table.indices(row["judged"])
            judged = table.multi_hot([*known, *indices])
        labels = table.multi_hot(indices)[None]
        clip_id = str(row["video_id"])
        stats.append([clip_id], torch.from_numpy(scores[None]), labels, judged[None])
    skipped.finish_pass()
    return stats


def _labelled(tagger: SoundTagger, rows: datasets.Dataset) -> datasets.Dataset:
    """Selects the rows labelled for the tagger's classes, without reading sound."""
    table = tagger.labels.with_names()
    columns = [name for name in ("labels", "judged") if name in rows.column_names]
    kept = [
        place
        for place, row in enumerate(rows.select_columns(columns))
        if row.get("judged") is not None or table.indices(row["labels"])[0]
    ]
    return rows if len(kept) == len(rows) else rows.select(kept)


def _scored(
    tagger: SoundTagger, rows: datasets.Dataset, skipped: SkippedClips
) -> Iterator[tuple[dict[str, Any], NDArray[np.float32]]]:
    """Yields the rows that can be read, each with its probabilities [K]."""
    size = tagger.batch_size
    with tqdm(total=len(rows), desc="whole clips", unit="clip", disable=None) as bar:
        for start in range(0, len(rows), size):
            places = range(start, min(start + size, len(rows)))
            batch = [rows[place] for place in places]
            for row, scores in _scored_batch(tagger, batch, skipped):
                skipped.add((), [str(row["video_id"])])
                yield row, scores
            bar.update(len(batch))


def _scored_batch(
    tagger: SoundTagger, batch: list[dict[str, Any]], skipped: SkippedClips
) -> Iterator[tuple[dict[str, Any], NDArray[np.float32]]]:
    try:
        sounds = [sound_of(row) for row in batch]
        yield from zip(batch, tagger.probabilities(sounds), strict=True)
    except UnreadableClip as error:
        if len(batch) == 1:
            skipped.add([Skipped(str(batch[0]["video_id"]), str(error))], [])
            return
        for row in batch:  # finds the unreadable one
            yield from _scored_batch(tagger, [row], skipped)


def whole_clip_frames(
    tagger: SoundTagger, rows: datasets.Dataset, skipped: SkippedClips
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Scores the frames of clips from beginning to end, as `frames` of a detector.

    Arguments
    ---------
    tagger : SoundTagger
        An ``EventDetector``, or another tagger that scores frames.
    rows : datasets.Dataset
        From ``read_table``.
    skipped : SkippedClips
        Receives the clips that cannot be read.

    Yields
    ------
    str, NDArray
        Clip id and probabilities, [T', K].

    Raises
    ------
    TooManyUnreadable
        If too many clips cannot be read.
    """
    for row in tqdm(rows, desc="whole clips", unit="clip", disable=None):
        clip_id = str(row["video_id"])
        try:
            found = tagger.frames(sound_of(row))
        except UnreadableClip as error:
            skipped.add([Skipped(clip_id, str(error))], [])
            continue
        skipped.add((), [clip_id])
        yield clip_id, found.scores
    skipped.finish_pass()


# --- Which clips ----------------------------------------------------------------


class ChosenClips(NamedTuple):
    """Clips to score, and a description of them."""

    rows: datasets.Dataset
    what: str


def choose_clips(
    rows: datasets.Dataset,
    split: str | None = None,
    fold: str | None = None,
    test_share: float | None = None,
    seed: int = 1234,
    run: Mapping[str, Any] | None = None,
) -> ChosenClips:
    """Chooses the clips to score.

    By default, these are the clips that the model's run was tested on, if ``rows`` are
    its data; else the test clips of a column ``split``; else all.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``.
    split : str or None
        A name in the column ``split``; "all": every clip.
    fold : str or None
        A name in the column ``fold``.
    test_share : float or None
        Share of all clips, drawn as ``recipes/finetune.py`` draws its test clips.
    seed : int
        Seed of that draw.
    run : Mapping or None
        ``run.json`` of the run that trained the model.

    Returns
    -------
    ChosenClips

    Raises
    ------
    ValueError
        For several choices at once, and names that do not exist.

    Example
    -------
    >>> columns = {"video_id": list("abc"), "labels": [["x"], ["y"], ["x"]]}
    >>> columns |= {"split": ["train", "train", "test"]}
    >>> choose_clips(datasets.Dataset.from_dict(columns)).what
    'the 1 of 3 clips in split test'
    """
    given = {"split": split, "fold": fold, "test_share": test_share}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(
            f"{' and '.join(named)} were given, but each chooses the clips to score; "
            "give one of them"
        )
    total = len(rows)

    def chosen(places: list[int], which: str) -> ChosenClips:
        what = f"the {len(places)} of {total} clips {which}"
        return ChosenClips(rows.select(places), what)

    if split is not None and split != ALL:
        return chosen(_where(rows, "split", split), f"in split {split}")
    if fold is not None:
        return chosen(_where(rows, "fold", fold), f"in fold {fold}")
    if test_share is not None:
        places = split_rows(rows, 0.0, test_share, seed).test
        return chosen(places, f"that finetune.py would test on with seed {seed}")
    if split is None and run is not None:
        tested = clips_tested_by(run, rows)
        if tested is not None:
            return chosen(tested, "that the run of this model was tested on")
    if split is None and "split" in rows.column_names:
        sides = _or_none(partial(given_split, rows))
        if sides is not None and 0 < len(sides.test) < total:
            names = sorted({str(rows["split"][place]) for place in sides.test})
            return chosen(sides.test, f"in split {' and '.join(names)}")
    return ChosenClips(rows, f"all {total} clips")


def _where(rows: datasets.Dataset, column: str, name: str) -> list[int]:
    """Finds the rows with a name in a column; raises if there are none."""
    if column not in rows.column_names:
        raise ValueError(
            f"{column}={name} was given, but the data has no column of {column}s; "
            "leave it out to score all clips"
        )
    names = [str(each) for each in rows[column][:]]
    places = [place for place, each in enumerate(names) if each == name]
    if not places:
        raise ValueError(
            f"{column}={name} was given, but it has no clips; the data has "
            f"{most_frequent(Counter(names), 20)}"
        )
    return places


def clips_tested_by(run: Mapping[str, Any], rows: datasets.Dataset) -> list[int] | None:
    """Finds the clips that a run was tested on.

    Arguments
    ---------
    run : Mapping
        Its ``run.json``.
    rows : datasets.Dataset
        From ``read_table``.

    Returns
    -------
    list of int or None
        Row numbers; None if the rows are not the run's data, or were read differently.
        For a run of ``recipes/audioset_kd.py``, these are the clips of its
        ``eval_split``.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"video_id": ["a", "b"], "fold": ["1", "2"]})
    >>> clips_tested_by(split_digest(rows, Split([0], [], [1])), rows)
    [1]
    """
    if "eval" in run:
        return _evaluated_by(run["eval"], rows)
    splits: list[Callable[[], Split]] = []
    if "split" in rows.column_names:
        splits.append(partial(given_split, rows))
    if "fold" in rows.column_names:
        folds = sorted({str(each) for each in rows["fold"][:] if each})
        splits += [partial(split_by_fold, rows, fold) for fold in folds]
    share, seed = run.get("test_share"), run.get("seed")
    if isinstance(share, float) and isinstance(seed, int):
        splits.append(partial(split_rows, rows, 0.0, share, seed))
    for make in splits:
        split = _or_none(make)
        if split is None or not split.test:
            continue
        alone = Split([], [], split.test)
        if split_digest(rows, alone)["test"] == run.get("test"):
            return split.test
    return None


def trained_on_all(run: Mapping[str, Any], rows: datasets.Dataset) -> bool:
    """Whether a run (its ``run.json``) was trained on exactly these clips.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"video_id": ["a", "b"]})
    >>> trained_on_all(split_digest(rows, Split([0, 1], [], [])), rows)
    True
    """
    everything = Split(list(range(len(rows))), [], [])
    return split_digest(rows, everything)["train"] == run.get("train")


def _evaluated_by(digest: str, rows: datasets.Dataset) -> list[int] | None:
    """Finds the rows of the split that a run on AudioSet's schema was evaluated on."""
    names = ["all"] * len(rows)
    if "split" in rows.column_names:
        names = [str(each) for each in rows["split"][:]]
    for name in dict.fromkeys(names):
        places = [place for place, each in enumerate(names) if each == name]
        some = rows.select(places)
        summary = summarize_rows(some, audioset_vocabulary())
        sounds = sounds_of(some)
        if digest_of_clips(summary.clip_ids, summary.indices, sounds) == digest:
            return places
    return None


def _or_none(make: Callable[[], Split]) -> Split | None:
    """Makes a split; returns None if the data does not allow it."""
    try:
        return make()
    except ValueError:
        return None
