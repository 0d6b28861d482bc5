"""From labels to tensors: the official AudioSet classes, multi-hot targets, counts."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.plain_text import shown

if TYPE_CHECKING:
    from torch import Tensor

# The official table: http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/
# class_labels_indices.csv
AUDIOSET_LABELS = Path(__file__).with_name("audioset_labels.csv")


class LabelTable:
    """Classes in a fixed order: what the K of every ``[B, K]`` means.

    Arguments
    ---------
    mids : Iterable[str]
        Identifier of each class, unique; for AudioSet its machine id, /m/09x0r.
        Labels are mapped by these: names drift between copies of AudioSet. Labels
        that people wrote may be names, to a table made by ``with_names``.
    names : Iterable[str]
        What people call each class.

    Example
    -------
    >>> labels = audioset_labels()
    >>> len(labels), labels.names[0], labels.index["/m/09x0r"]
    (527, 'Speech', 0)
    """

    def __init__(self, mids: Iterable[str], names: Iterable[str]) -> None:
        self.mids = tuple(mids)
        self.names = tuple(names)
        if len(self.mids) != len(self.names):
            raise ValueError(
                f"{len(self.mids)} class ids but {len(self.names)} names were given; "
                "give one name for each"
            )
        for text in (*self.mids, *self.names):
            if not isinstance(text, str):
                raise ValueError(
                    f"class ids and names must be text, but {text!r:.80} is none; "
                    "write it in quotes"
                )
        self.index = {mid: index for index, mid in enumerate(self.mids)}
        self.index_of_name: dict[str, int] = {}  # see `with_names`
        if len(self.index) != len(self.mids):
            twice = [mid for mid, n in Counter(self.mids).items() if n > 1]
            raise ValueError(f"class ids must be unique, but {twice[:5]} repeat")

    @classmethod
    def from_csv(cls, path: str | Path) -> "LabelTable":
        """Reads a table with the columns index, mid, display_name.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is no such table.
        """
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            rows.sort(key=lambda row: int(row["index"]))
            columns = [[row[name] for row in rows] for name in ("mid", "display_name")]
            if not rows:
                raise ValueError("it has no rows")
            return cls(*columns)
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no table of labels ({type(error).__name__}: {error}); it "
                "must be a CSV with the columns index, mid and display_name, each mid "
                "once"
            ) from error

    def with_names(self) -> "LabelTable":
        """The same classes, of which a label may also be the name, in any case.

        Ids go before names, and a name that several classes have is of none.

        Example
        -------
        >>> table = LabelTable(["/m/a", "/m/b"], ["Dog", "Rain"])
        >>> table.indices(["dog"]), table.with_names().indices(["dog", "/m/b"])
        (([], ['dog']), ([0, 1], []))
        """
        table = LabelTable(self.mids, self.names)
        places: defaultdict[str, set[int]] = defaultdict(set)
        for column in (self.mids, self.names):
            for index, text in enumerate(column):
                places[text.casefold()].add(index)
        alone = {text: at for text, at in places.items() if len(at) == 1}
        table.index_of_name = {text: min(at) for text, at in alone.items()}
        return table

    def __len__(self) -> int:
        return len(self.mids)

    @property
    def sha256(self) -> str:
        """Digest of ids in order: two tables with the same one mean the same K."""
        return hashlib.sha256("\n".join(self.mids).encode()).hexdigest()

    def indices(self, labels: Iterable[str]) -> tuple[list[int], list[str]]:
        """Class indices of ``labels``, and those that the table does not have."""
        known, unknown = [], []
        for label in labels:
            index = self.index.get(label, self.index_of_name.get(label.casefold()))
            if index is None:
                unknown.append(label)
            else:
                known.append(index)
        return known, unknown

    def multi_hot(self, indices: Iterable[int]) -> "Tensor":
        """[K], 1 at ``indices``.

        Example
        -------
        >>> LabelTable(["a", "b", "c"], ["A", "B", "C"]).multi_hot([0, 2])
        tensor([1., 0., 1.])
        """
        import torch  # what else the table does is done without it, too

        target = torch.zeros(len(self))
        target[list(indices)] = 1.0
        return target


@lru_cache
def audioset_labels() -> LabelTable:
    """The 527 classes of AudioSet in their official order."""
    return LabelTable.from_csv(AUDIOSET_LABELS)


class LabelSummary(NamedTuple):
    """What the label column of a data set says, read without any audio."""

    clip_ids: list[str]
    indices: list[list[int]]  # classes of each clip; empty where unlabelled
    counts: NDArray[np.int64]  # [K], clips of each class
    unknown: Counter  # labels the table does not have

    @property
    def num_labelled(self) -> int:
        """Clips with at least one known label."""
        return sum(1 for indices in self.indices if indices)

    def __str__(self) -> str:
        text = (
            f"{len(self.indices)} clips, {self.num_labelled} labelled with "
            f"{int((self.counts > 0).sum())} classes"
        )
        if self.unknown:
            most = self.unknown.most_common(5)
            some = ", ".join(f"{shown(mid)} ({n})" for mid, n in most)
            text += (
                f"; {sum(self.unknown.values())} labels of {len(self.unknown)} kinds "
                f"are not in the label table and are left out: {some}"
            )
        return text


def summarize_labels(
    clip_ids: Iterable[str], labels: Iterable[Iterable[str] | None], table: LabelTable
) -> LabelSummary:
    """Maps and counts the labels of a data set.

    Example
    -------
    >>> table = LabelTable(["a", "b"], ["A", "B"])
    >>> print(summarize_labels(["x", "y"], [["a", "z"], []], table))
    2 clips, 1 labelled with 1 classes; 1 labels of 1 kinds are not in the label ...
    """
    # Plain numbers: an array takes ten times as long to count a clip.
    counts = [0] * len(table)
    unknown: Counter = Counter()
    indices = []
    for mids in labels:
        known, missing = table.indices(mids or ())
        known = sorted(set(known))
        for index in known:
            counts[index] += 1
        if missing:
            unknown.update(missing)
        indices.append(known)
    return LabelSummary(list(clip_ids), indices, np.array(counts, np.int64), unknown)
