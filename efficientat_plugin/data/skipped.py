"""Counts and reports unreadable clips; too many of them are an error."""

import logging
from collections.abc import Iterable

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

# During a pass, the share is not judged by fewer clips than this.
ENOUGH_TO_JUDGE = 1000
NAMED_IN_ERROR = 20


class TooManyUnreadable(RuntimeError):
    """Raised when so many clips are unreadable that the data needs checking."""


class SkippedClips:
    """Counts skipped clips in each pass through the data.

    A clip counts once per pass, however often it is drawn or tried as a replacement.

    Arguments
    ---------
    max_share : float
        A larger share of the clips of a pass, from 0 to 1, ends the run.
    already_read : int
        Clips of the same data that were read earlier; they count in every pass.

    Example
    -------
    >>> skipped = SkippedClips(max_share=0.5)
    >>> skipped.add([Skipped("a", "it has no samples")], read=["b"])
    >>> skipped.finish_pass()
    >>> skipped.reasons
    {'a': 'it has no samples'}
    """

    def __init__(self, max_share: float = 0.01, already_read: int = 0) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share={max_share} must be from 0 to 1")
        self.max_share = max_share
        self.already_read = already_read
        self.reasons: dict[str, str] = {}
        self._start_pass()

    @property
    def num_tried(self) -> int:
        """The number of clips tried in this pass, plus ``already_read``."""
        return self.already_read + len(self.read) + len(self.in_pass)

    def add(self, skipped: Iterable[Skipped], read: Iterable[str]) -> None:
        """Counts a batch: the skipped clips, and the ids of those that were read."""
        self.read.update(map(hash, read))
        for clip_id, reason in skipped:
            if clip_id not in self.reasons:
                text = f"{shown(clip_id)}: {shown(reason)}"
                logger.warning("Skipping clip %s", text)
            self.reasons[clip_id] = reason
            self.in_pass.add(clip_id)
        if self.num_tried >= ENOUGH_TO_JUDGE:
            self._judge()

    def finish_pass(self) -> None:
        """Checks the pass and starts the next one.

        Raises
        ------
        TooManyUnreadable
            If more than the allowed share was skipped; names the clips.
        """
        self._judge()
        if self.in_pass:
            logger.warning(
                "%d of %d clips were skipped as unreadable",
                len(self.in_pass),
                self.num_tried,
            )
        self._start_pass()

    def _start_pass(self) -> None:
        self.read: set[int] = set()  # hashes of ids, to save memory
        self.in_pass: set[str] = set()

    def _judge(self) -> None:
        num_skipped, num_tried = len(self.in_pass), self.num_tried
        if num_skipped <= self.max_share * num_tried:
            return
        named = [
            f"{shown(clip)}: {shown(self.reasons[clip])}"
            for clip in sorted(self.in_pass)
        ]
        more = f"\n... and {len(named) - NAMED_IN_ERROR} more"
        raise TooManyUnreadable(
            f"{num_skipped} of {num_tried} clips could not be read, more than the "
            f"allowed share of {self.max_share:g}; fix the data or raise "
            "max_unreadable_share:\n"
            + "\n".join(named[:NAMED_IN_ERROR])
            + (more if len(named) > NAMED_IN_ERROR else "")
        )
