"""Maps labels to classes: label tables, AudioSet's classes, multi-hot targets."""

import csv
import difflib
import hashlib
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Tag
from efficientat_plugin.support.files import read_text
from efficientat_plugin.support.limits import MAX_SETTINGS_BYTES
from efficientat_plugin.support.plain_text import of_cell, shown, some_of

if TYPE_CHECKING:
    from torch import Tensor

# The official table: http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/
# class_labels_indices.csv
AUDIOSET_LABELS = Path(__file__).with_name("audioset_labels.csv")
# The classes of AudioSet's strong labels that the published models of sound events were
# trained on: of the 456 in mid_to_display_name.tsv, those with an event in the training
# clips, sorted by name. Source: github.com/fschmid56/PretrainedSED (MIT), its list of
# training classes; Hershey et al., "The Benefit of Temporally-Strong Labels in Audio
# Event Classification", ICASSP 2021 (labels: CC BY 4.0)
AUDIOSET_STRONG_LABELS = Path(__file__).with_name("audioset_strong_labels.csv")


Labels: TypeAlias = Iterable[str | int] | str | int | None  # of a clip


class LabelTable:
    """Holds classes in a fixed order, the axis K of every ``[B, K]``.

    Arguments
    ---------
    mids : Iterable[str]
        Unique identifier of each class; for AudioSet its machine id, /m/09x0r.
        Labels are looked up by these, because names differ between copies of
        AudioSet. A table made by ``with_names`` accepts names, too.
    names : Iterable[str]
        Human-readable name of each class.

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
                    f"class ids and names must be text, but {text!r:.80} is not; "
                    "write it in quotes"
                )
        self.index = {mid: index for index, mid in enumerate(self.mids)}
        self.index_of_name: dict[str, int] = {}  # see `with_names`
        self.most_parts = 1  # comma-separated parts of a name, at most
        self.has_numbers = False  # see `with_numbers`
        if len(self.index) != len(self.mids):
            twice = [mid for mid, n in Counter(self.mids).items() if n > 1]
            raise ValueError(
                f"class ids must be unique, but some repeat: {some_of(twice)}"
            )

    @classmethod
    def from_csv(cls, path: str | Path) -> "LabelTable":
        """Reads a table with the columns index, mid, display_name.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a table.
        """
        try:
            text = read_text(path, MAX_SETTINGS_BYTES, "utf-8-sig")
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            rows.sort(key=lambda row: int(row["index"]))
            if any(None in row.values() for row in rows):
                raise ValueError("a row is cut short")
            columns = [
                [of_cell(row[name]) for row in rows] for name in ("mid", "display_name")
            ]
            if not rows:
                raise ValueError("it has no rows")
            return cls(*columns)
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a table of labels ({type(error).__name__}: {error}); "
                "it must be a CSV with the columns index, mid and display_name, and "
                "unique mids"
            ) from error

    def with_names(self) -> "LabelTable":
        """Returns the same classes, accepting names as labels, in any case.

        Ids take precedence over names, and a name shared by several classes is not
        accepted. A name with commas is recognized even if a reader split it at them.

        Example
        -------
        >>> table = LabelTable(["/m/a", "/m/b"], ["Dog", "Child speech, kid speaking"])
        >>> table.indices(["dog"]), table.with_names().indices(["dog", "/m/b"])
        (([], ['dog']), ([0, 1], []))
        >>> table.with_names().indices(["Child speech", "kid speaking", "Dog"])
        ([1, 0], [])
        """
        table = LabelTable(self.mids, self.names)
        places: defaultdict[str, set[int]] = defaultdict(set)
        for column in (self.mids, self.names):
            for index, text in enumerate(column):
                places[_folded(text)].add(index)
        alone = {text: at for text, at in places.items() if len(at) == 1}
        table.index_of_name = {text: min(at) for text, at in alone.items()}
        table.most_parts = 1 + max((text.count(",") for text in alone), default=0)
        return table

    def with_numbers(self) -> "LabelTable":
        """Returns the same classes, accepting names and class indices as labels.

        Indices count from 0, as numbers or as their digits. They are only accepted if
        no id or name is a number; use this only for data that is known to follow this
        table.

        Example
        -------
        >>> table = LabelTable(["/m/a", "/m/b"], ["Dog", "Rain"]).with_numbers()
        >>> table.indices([1, "0", "rain", "/m/a", 2])
        ([1, 0, 1, 0], ['2'])
        """
        table = self.with_names()
        if not any(text.isdecimal() for text in (*self.mids, *self.names)):
            table.index_of_name |= {str(place): place for place in range(len(self))}
            table.has_numbers = True
        return table

    def __len__(self) -> int:
        return len(self.mids)

    @property
    def sha256(self) -> str:
        """Digest of the ids in order; tables with equal digests have the same K."""
        return hashlib.sha256("\n".join(self.mids).encode()).hexdigest()

    def indices(self, labels: Labels) -> tuple[list[int], list[str]]:
        """Splits the labels of a clip into class indices and unknown labels.

        Arguments
        ---------
        labels : iterable of str or int; or str, int or None
            See ``listed``.

        Returns
        -------
        known : list of int
        unknown : list of str
        """
        texts = listed(labels)
        known, unknown, place = [], [], 0
        while place < len(texts):
            index, length = self.index.get(texts[place]), 1
            if index is None and self.index_of_name:
                index, length = self._named(texts[place : place + self.most_parts])
            if index is None:
                unknown.append(texts[place])
            else:
                known.append(index)
            place += length
        return known, unknown

    def _named(self, texts: list[str]) -> tuple[int | None, int]:
        """Finds the longest name that ``texts`` begin with: its class and length."""
        for length in range(len(texts), 0, -1):
            index = self.index_of_name.get(_folded(",".join(texts[:length])))
            if index is not None:
                return index, length
        return None, 1

    def multi_hot(self, indices: Iterable[int]) -> "Tensor":
        """Returns a vector [K] that is 1 at ``indices`` and 0 elsewhere.

        Example
        -------
        >>> LabelTable(["a", "b", "c"], ["A", "B", "C"]).multi_hot([0, 2])
        tensor([1., 0., 1.])
        """
        import torch  # only needed here

        target = torch.zeros(len(self))
        target[list(indices)] = 1.0
        return target


def listed(labels: Labels) -> list[str]:
    """Converts the labels of a clip to a list of text.

    Arguments
    ---------
    labels : iterable of str or int; or str, int or None
        A single label becomes a list of one; None: nobody labelled the clip.

    Example
    -------
    >>> listed(["dog", 7]), listed("dog"), listed(0), listed(None)
    (['dog', '7'], ['dog'], ['0'], [])
    """
    if labels is None:
        return []
    if isinstance(labels, str | int):
        return [str(labels)]
    return [str(label) for label in labels if label is not None]


def _folded(name: str) -> str:
    """Normalizes a name's case, Unicode form and the space around its commas."""
    name = unicodedata.normalize("NFC", name)
    return ",".join(part.strip() for part in name.casefold().split(","))


@lru_cache
def audioset_labels() -> LabelTable:
    """Returns the 527 classes of AudioSet in their official order."""
    return LabelTable.from_csv(AUDIOSET_LABELS)


@lru_cache
def audioset_strong_labels() -> LabelTable:
    """Returns the 447 classes of AudioSet's strong labels, in the published order.

    They are the classes of the published `FrameMN` models. 71 of them
    are not among the 527 of ``audioset_labels``, and the order is another.

    Example
    -------
    >>> labels = audioset_strong_labels()
    >>> len(labels), labels.names[0], labels.names[-1]
    (447, 'Accelerating, revving, vroom', 'Zipper (clothing)')
    """
    return LabelTable.from_csv(AUDIOSET_STRONG_LABELS)


@lru_cache
def audioset_vocabulary() -> LabelTable:
    """Returns ``audioset_labels``, accepting ids, names and class indices as labels.

    Example
    -------
    >>> audioset_vocabulary().indices(["/m/0bt9lr", "Dog", "74", 74])
    ([74, 74, 74, 74], [])
    """
    return vocabulary_of(audioset_labels())


def vocabulary_of(table: LabelTable) -> LabelTable:
    """Returns the same classes, accepting any label of data in AudioSet's schema.

    Such a label is an id, a name or, for AudioSet's own classes only, a class index.

    Example
    -------
    >>> vocabulary_of(LabelTable(["/m/a"], ["Dog"])).indices(["dog", 0])
    ([0], ['0'])
    """
    is_audioset = table.sha256 == audioset_labels().sha256
    return table.with_numbers() if is_audioset else table.with_names()


def refuse_other_labels(what: str, summary: "LabelSummary", table: LabelTable) -> None:
    """Raises a ``ValueError`` if labels were found, but none is a class of the table.

    Arguments
    ---------
    what : str
        Name of the clips in the message.
    summary : LabelSummary
        Made with the table.
    table : LabelTable
    """
    if summary.unknown and not summary.num_labelled:
        raise ValueError(
            f"{what} have labels ({most_frequent(summary.unknown)}) but none is an "
            f"id or a name of the {len(table)} classes, such as {table.mids[0]!r} or "
            f"{table.names[0]!r}; write ids or names, or an empty list for clips that "
            "nobody labelled; or pass another label_column, or the separator of "
            "several labels in a cell"
        )


class LabelSummary(NamedTuple):
    """Holds the labels of a data set, mapped to classes and counted."""

    clip_ids: list[str]
    indices: list[list[int]]  # classes of each clip; empty where unlabelled
    counts: NDArray[np.int64]  # [K], clips of each class
    unknown: Counter  # labels that are not in the table
    numbers: str = ""  # how labels that are numbers were read

    @property
    def num_labelled(self) -> int:
        """Counts the clips with at least one known label."""
        return sum(1 for indices in self.indices if indices)

    def __str__(self) -> str:
        text = (
            f"{len(self.indices)} clips, {self.num_labelled} labelled with "
            f"{int((self.counts > 0).sum())} classes"
        )
        found = [self.numbers, self.left_out if self.unknown else ""]
        return "; ".join([text, *filter(None, found)])

    @property
    def left_out(self) -> str:
        """Reports how many labels are not in the table, and the most frequent of them.

        Example
        -------
        >>> table = LabelTable(["a"], ["A"])
        >>> summarize_labels(["x"], [["a", "z"]], table).left_out
        '1 label of 1 kind is not in the label table and is left out: z (1)'
        """
        count, kinds = sum(self.unknown.values()), len(self.unknown)
        some = most_frequent(self.unknown)
        return (
            f"{count} label{'s' * (count != 1)} of {kinds} kind{'s' * (kinds != 1)} "
            + ("is" if count == 1 else "are")
            + " not in the label table and "
            + ("is" if count == 1 else "are")
            + f" left out: {some}"
        )


def most_frequent(counts: Counter, number: int = 5) -> str:
    """Lists the most frequent labels, and how many more kinds there are.

    Example
    -------
    >>> most_frequent(Counter(a=3, b=2, c=1), number=2)
    'a (3), b (2) and 1 more'
    """
    named = (f"{name} ({n})" for name, n in counts.most_common())
    return some_of(named, number)


def summarize_labels(
    clip_ids: Iterable[str],
    labels: Iterable[Labels],
    table: LabelTable,
) -> LabelSummary:
    """Maps and counts the labels of a data set.

    Example
    -------
    >>> table = LabelTable(["a", "b"], ["A", "B"])
    >>> print(summarize_labels(["x", "y"], [["a", "z"], []], table))
    2 clips, 1 labelled with 1 classes; 1 label of 1 kind is not in the label table ...
    """
    # A list of integers: counting in an array takes ten times as long per clip.
    counts = [0] * len(table)
    unknown: Counter = Counter()
    indices, num_numbers = [], 0
    for mids in labels:
        known, missing = table.indices(mids)
        known = sorted(set(known))
        for index in known:
            counts[index] += 1
        if missing:
            unknown.update(missing)
        indices.append(known)
        if table.has_numbers and known:
            num_numbers += _is_number(mids)
    numbers = ""
    if num_numbers:
        last = len(table) - 1
        numbers = (
            f"labels of {num_numbers} clips are numbers, read as class indices: 0 is "
            f"{shown(table.names[0])}, {last} is {shown(table.names[last])}"
        )
    return LabelSummary(
        list(clip_ids), indices, np.array(counts, np.int64), unknown, numbers
    )


def _is_number(labels: Labels) -> bool:
    """Whether the first label of a clip is a number."""
    return any(text.isdecimal() for text in listed(labels)[:1])


def places_of(classes: Iterable[Labels], table: LabelTable) -> list[int]:
    """Finds classes by their names, in any case, or their ids.

    Arguments
    ---------
    classes : iterable
        Names or ids; or lists, in which a name with commas may be split at them.
    table : LabelTable
        The classes of a model.

    Returns
    -------
    list of int
        Their indices in the given order, each once.

    Raises
    ------
    ValueError
        If the model lacks some of them; names similar ones.

    Example
    -------
    >>> table = LabelTable(["/m/a", "/m/b"], ["Dog", "Child speech, kid speaking"])
    >>> places_of(["dog", "/m/b", "Dog"], table)
    [0, 1]
    >>> places_of(["Dogs"], table)
    Traceback (most recent call last):
    ValueError: the model has no class Dogs; similar to it is Dog
    """
    named = table if table.index_of_name else table.with_names()
    found = [named.indices(labels) for labels in classes]
    if unknown := [label for _, missing in found for label in missing]:
        raise ValueError(
            f"the model has no class {some_of(unknown)}; {_similar(unknown, table)}"
        )
    return list(dict.fromkeys(index for indices, _ in found for index in indices))


def _similar(unknown: Sequence[str], table: LabelTable) -> str:
    """Names classes whose names resemble those that a model lacks."""
    names = {_folded(name): name for name in table.names}
    near: dict[str, None] = {}
    for text in map(_folded, unknown[:3]):
        word = re.compile(rf"\b{re.escape(text)}" if text else "$^")
        alike = difflib.get_close_matches(text, names, n=2)
        alike += [name for name in names if word.search(name)][:3]
        near |= dict.fromkeys(names[name] for name in alike)
    if near:
        verb = "is" if len(near) == 1 else "are"
        it = "it" if len(unknown) == 1 else "them"
        return f"similar to {it} {verb} {some_of(near)}"
    return f"its {len(table)} classes are {some_of(table.names)}"


def likeliest(
    labels: LabelTable,
    probabilities: NDArray[np.float32],
    top_k: int | None,
    threshold: float,
    places: Sequence[int] | None = None,
) -> list[Tag]:
    """Returns the classes of [K] probabilities as tags, the most probable first.

    Arguments
    ---------
    labels : LabelTable
        The classes.
    probabilities : NDArray
        [K]
    top_k : int or None
        Number of tags, at most; None: all.
    threshold : float
        Lowest probability of a tag.
    places : sequence of int or None
        Classes that may be returned; None: all.

    Returns
    -------
    list of Tag

    Example
    -------
    >>> labels = LabelTable(["/m/a", "/m/b"], ["A", "B"])
    >>> [tag.name for tag in likeliest(labels, np.array([0.25, 0.5]), 2, 0.0)]
    ['B', 'A']
    """
    order = np.argsort(-probabilities, kind="stable")
    if places is not None:
        order = order[np.isin(order, places)]
    return [
        Tag(labels.names[k], labels.mids[k], float(probabilities[k]))
        for k in order[:top_k]
        if probabilities[k] >= threshold
    ]
