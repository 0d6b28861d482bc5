"""A stored teacher: logits computed beforehand, looked up in the training loop."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientat_plugin.contracts import TeacherInput, TeacherTarget
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.labels import LabelSummary, LabelTable
from efficientat_plugin.evaluation.metrics import Scores, TaggingStats
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.manifest import MANIFEST
from efficientat_plugin.teachers.store.verify import verify

LOOKED_UP = 500  # clips whose logits enter the digest of a store
LOOKED_UP_OF_FRAMES = 50  # whose rows are larger

logger = logging.getLogger(__name__)


class StoredTeacher:
    """Looks up a teacher's logits of clean clips by clip id.

    For a mix, the logits of both clips are returned, to be weighted by their shares.
    ``OnlineTeacher`` scores the mix itself.

    Arguments
    ---------
    store : LogitsStore, str or Path

    Raises
    ------
    FileNotFoundError, ValueError
        As ``LogitsStore``; and for logits of frames, which a `StoredFrameTeacher` has.

    Example
    -------
    >>> StoredTeacher("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: no logits store at ...
    """

    of_frames = False  # which kind of logits it looks up

    def __init__(self, store: LogitsStore | str | Path) -> None:
        self.store = store if isinstance(store, LogitsStore) else LogitsStore(store)
        if self.of_frames != (self.store.manifest.num_frames is not None):
            theirs, ours = (
                ("clips", "frames") if self.of_frames else ("frames", "clips")
            )
            raise ValueError(
                f"{self.store.path} holds logits of {theirs}, and logits of {ours} are "
                "needed; recipes/audioset_strong.py learns from those of frames, which "
                "dump_teacher_logits.py stores with --frames True, the other recipes "
                "from those of clips"
            )

    @property
    def name(self) -> str:
        """Name of the teacher."""
        return self.store.manifest.teacher

    def __call__(self, inputs: TeacherInput) -> TeacherTarget:
        """Returns the logits of a batch, and of the clips mixed into it."""
        batch, device = inputs.batch, inputs.log_mel.device
        target = self._look_up(batch.clip_id, device)
        if batch.partner_share.any():
            target = target._replace(partner=self._look_up(batch.partner_id, device))
        return target

    def _look_up(self, clip_ids: list[str], device: torch.device) -> TeacherTarget:
        logits, known, *_ = self.store.lookup(clip_ids)
        return TeacherTarget(logits.to(device), known.to(device))

    def check(
        self,
        summary: LabelSummary,
        labels: LabelTable,
        minimum_coverage: float = 0.9,
        target: str = "multilabel",
    ) -> str:
        """Checks the store before training and describes it in a line.

        Raises
        ------
        ValueError
            If its classes or clips differ, or it covers too few clips.
        """
        del target  # logits are stored before sigmoid or softmax
        clips = zip(summary.clip_ids, summary.indices, strict=True)
        verdict = verify(
            self.store,
            clips,
            labels_sha256=labels.sha256,
            minimum_coverage=minimum_coverage,
            num_classes=len(labels),
        )
        verdict.raise_if_bad()
        return str(verdict)

    def identity(self, clip_ids: Sequence[str]) -> str:
        """Returns the teacher's name and a digest, wherever the store is.

        The digest covers the manifest, which of the clips are known, and the logits of
        some of them.
        """
        manifest = self.store.manifest
        known = self.store.rows(clip_ids) >= 0
        digest = hashlib.sha256(json.dumps(manifest.kind, sort_keys=True).encode())
        digest.update(np.packbits(known).tobytes())
        places = np.flatnonzero(known)
        number = LOOKED_UP_OF_FRAMES if self.of_frames else LOOKED_UP
        some = places[:: max(1, len(places) // number)]
        logits = self.store.lookup([clip_ids[place] for place in some]).logits
        digest.update(logits.numpy().tobytes())
        return f"{manifest.teacher} (digest {digest.hexdigest()[:8]})"

    def scores(
        self, clips: Clips, summary: LabelSummary, loader_options: Mapping[str, Any]
    ) -> Scores | None:
        """Computes scores on the clips that are known and labelled; None: no such."""
        del loader_options  # no sound is read
        target = self.store.lookup(summary.clip_ids)
        known = target.known.nonzero()[:, 0].tolist()
        known = [row for row in known if summary.indices[row]]
        if not known:
            return None
        labels = [clips.reader.labels.multi_hot(summary.indices[row]) for row in known]
        stats = TaggingStats(logits=True)
        ids = [summary.clip_ids[row] for row in known]
        stats.append(ids, target.logits[known], torch.stack(labels))
        return stats.summarize()


def warn_of_other_clips(teacher: Any, clip_seconds: float, short_clips: str) -> None:
    """Warns if stored logits are of clips that were cut or lengthened differently.

    Arguments
    ---------
    teacher : StoredTeacher, OnlineTeacher or None
        Only a ``StoredTeacher`` is checked; the others score the student's own clips.
    clip_seconds : float
        Length of the student's clips, s.
    short_clips : str
        How its short clips are lengthened.
    """
    if not isinstance(teacher, StoredTeacher):
        return
    manifest = teacher.store.manifest
    theirs = (manifest.clip_seconds, manifest.short_clips)
    if theirs != (clip_seconds, short_clips):
        logger.warning(
            "The logits in %s are of clips of %g s (short_clips: %s), and the student "
            "trains on clips of %g s (%s): the logits may reflect sound that is not in "
            "its clips",
            teacher.store.path,
            *theirs,
            clip_seconds,
            short_clips,
        )


def is_store(source: str | Path) -> bool:
    """Whether a path leads to a logits store, as opposed to the name of a teacher.

    Example
    -------
    >>> is_store("mn10_as")
    False
    """
    return os.path.isfile(os.path.join(source, MANIFEST))


def as_teacher(teacher: Any) -> Any:
    """Resolves a YAML's ``teacher``: a path opens a store, null means no teacher.

    Arguments
    ---------
    teacher : str, Path, OnlineTeacher, StoredTeacher or None

    Returns
    -------
    StoredTeacher, OnlineTeacher or None

    Raises
    ------
    FileNotFoundError, ValueError
        As ``LogitsStore``.

    Example
    -------
    >>> as_teacher(None) is None
    True
    """
    return StoredTeacher(teacher) if isinstance(teacher, str | Path) else teacher
