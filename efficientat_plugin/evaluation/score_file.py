"""Scores of frames of many clips, kept in a temporary file."""

import errno
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IN_MEMORY = 2**26  # bytes, until there is a file


class StoredScores(NamedTuple):
    """Where the scores of a clip are."""

    offset: int  # bytes
    num_frames: int  # T'
    num_classes: int  # K


class ScoreFile:
    """Keeps arrays of scores as 32-bit numbers; beyond 64 MB, in a temporary file.

    The file is where Python's ``tempfile`` puts it (``TMPDIR``), and goes away with
    this object or its process.

    Raises
    ------
    OSError
        If the disk is full.

    Example
    -------
    >>> file = ScoreFile()
    >>> place = file.append(np.array([[0.5, 0.25]]))
    >>> file.read(place)
    array([[0.5 , 0.25]], dtype=float32)
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._file = tempfile.SpooledTemporaryFile(in_memory)
        self._size = 0
        weakref.finalize(self, self._file.close)

    def append(self, scores: NDArray) -> StoredScores:
        """Writes scores [T', K]; returns where they are."""
        place = StoredScores(self._size, *scores.shape)
        whole = np.ascontiguousarray(scores, np.float32).tobytes()
        self._file.seek(self._size)
        try:
            self._file.write(whole)
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"the scores to evaluate take {self._size / 1e9:.1f} GB so far, and "
                f"{tempfile.gettempdir()} is full; set TMPDIR to a folder with more "
                "room",
            ) from error
        self._size += len(whole)
        return place

    def read(self, place: StoredScores) -> NDArray[np.float32]:
        """Reads the scores of a clip, [T', K]."""
        offset, num_frames, num_classes = place
        self._file.seek(offset)
        whole = self._file.read(4 * num_frames * num_classes)
        return np.frombuffer(whole, np.float32).reshape(num_frames, num_classes)


class ScoresOfClips(Mapping[str, NDArray[np.float32]]):
    """The scores of clips by id, which are read when asked for.

    Arguments
    ---------
    file : ScoreFile
    places : mapping
        Where the scores of each clip are.

    Example
    -------
    >>> file = ScoreFile()
    >>> scores = ScoresOfClips(file, {"a": file.append(np.zeros((250, 447)))})
    >>> scores["a"].shape, len(scores)
    ((250, 447), 1)
    """

    def __init__(self, file: ScoreFile, places: Mapping[str, StoredScores]) -> None:
        self._file, self._places = file, places

    def __getitem__(self, clip_id: str) -> NDArray[np.float32]:
        return self._file.read(self._places[clip_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class AboveThreshold(Mapping[str, NDArray[np.float32]]):
    """The scores of clips as 1 where they exceed a threshold, and 0 elsewhere.

    At a threshold of 0.5 they have the events that the scores have at theirs, and none
    at others, for which an evaluation would need memory.

    Arguments
    ---------
    scores : mapping
        [T', K] by clip id.
    threshold : float or NDArray
        For all classes, or for each: [K].

    Example
    -------
    >>> AboveThreshold({"a": np.array([[-1.0], [2.0]])}, threshold=0.0)["a"][:, 0]
    array([0., 1.], dtype=float32)
    """

    def __init__(
        self, scores: Mapping[str, NDArray], threshold: float | NDArray[np.float64]
    ) -> None:
        self._scores, self._threshold = scores, threshold

    def __getitem__(self, clip_id: str) -> NDArray[np.float32]:
        return (self._scores[clip_id] > self._threshold).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)
