"""Collects the scores of frames that a run evaluates a sound event detector by."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.frame_events import FRAME_SECONDS, median_filter
from efficientat_plugin.evaluation.detection_scores import DetectionScores, FloatArray
from efficientat_plugin.evaluation.event_scores import event_scores
from efficientat_plugin.evaluation.events import PSDS1, psds
from efficientat_plugin.evaluation.f_scores import Threshold, floor_of
from efficientat_plugin.evaluation.score_file import (
    AboveThreshold,
    ScoreFile,
    ScoresOfClips,
    StoredScores,
)
from efficientat_plugin.evaluation.segment_scores import segment_scores
from efficientat_plugin.evaluation.threshold_choice import (
    ChosenThresholds,
    check_choice_options,
    choose_thresholds,
)

CLIPS_AT_ONCE = 64  # that a process hands to the others


class DetectionStats:
    """Collects the scores of frames of clips, and computes `DetectionScores`.

    Call ``append`` for each batch and ``summarize`` at the end. Clips without a table
    of events are left out. Scores are kept in a temporary file, as 32-bit numbers: 447
    classes of 10 s take 0.45 MB a clip. They are evaluated clip by clip.

    Arguments
    ---------
    events : mapping
        Events by clip id; a clip with none has an empty list.
    seconds : mapping
        Length of each clip.
    classes : sequence of str
        Names of the K classes.
    frame_seconds : float
        Distance of the frames.
    median_seconds : float
        Length of the median filter over scores, rounded down to an odd number of
        frames; 0: none.
    threshold : float or mapping
        Probability that an event has to exceed, for the F-scores, or one for each class
        by name; PSDS1 has none.
    thresholds_by : str or None
        "event_F" or "segment_F": what ``choose_thresholds`` maximises. None: it is not
        called, and ``threshold`` is kept.
    fewest_events : int
        Events of a class from which its threshold is chosen; with fewer, ``threshold``
        is kept.
    onsets_only : bool
        Whether the F-score of events is of their starts alone.
    logits : bool
        Whether scores are logits; otherwise they are probabilities.

    Example
    -------
    >>> import torch
    >>> events = {"a": [Event("dog", 0.04, 0.12)]}
    >>> stats = DetectionStats(events, {"a": 0.16}, ["dog"], median_seconds=0.0)
    >>> stats.append(["a"], torch.tensor([[[0.1, 0.9, 0.8, 0.3]]]))
    >>> stats.summarize().PSDS1
    1.0
    """

    def __init__(
        self,
        events: Mapping[str, Sequence[Event]],
        seconds: Mapping[str, float],
        classes: Sequence[str],
        frame_seconds: float = FRAME_SECONDS,
        median_seconds: float = 0.36,
        threshold: Threshold = 0.5,
        thresholds_by: str | None = "segment_F",
        fewest_events: int = 5,
        onsets_only: bool = False,
        logits: bool = False,
    ) -> None:
        legal = isinstance(threshold, Mapping) or 0 < threshold < 1
        if not legal or not median_seconds >= 0:
            raise ValueError(
                f"threshold={threshold} must be a probability between 0 and 1, and "
                f"median_seconds={median_seconds} 0 or more"
            )
        self.events, self.seconds, self.classes = events, seconds, list(classes)
        self.frame_seconds, self.threshold = frame_seconds, threshold
        self.median_frames = 2 * int(median_seconds / (2 * frame_seconds) + 1e-6) + 1
        if thresholds_by is not None:
            check_choice_options(thresholds_by, fewest_events)
        self.thresholds_by, self.fewest_events = thresholds_by, fewest_events
        self.onsets_only, self.logits = onsets_only, logits
        self._file = ScoreFile()
        self.places: dict[str, StoredScores] = {}  # of clips in it

    def append(self, ids: Sequence[str], scores: Tensor) -> None:
        """Adds a batch of scores (or logits) of frames, [B, K, T']."""
        arrays = scores.detach().float().cpu().numpy()
        for clip_id, array in zip(ids, arrays, strict=True):
            if clip_id in self.events and clip_id in self.seconds:
                filtered = median_filter(array.T, self.median_frames)
                self.places[clip_id] = self._file.append(filtered)

    def gather(self) -> None:
        """Gathers the clips of all processes in every process, some at a time."""
        if not torch.distributed.is_initialized():
            return
        own, rank = list(self.places.items()), torch.distributed.get_rank()
        count = torch.distributed.get_world_size()
        counts: list = [None] * count
        torch.distributed.all_gather_object(counts, len(own))
        places: list[dict[str, StoredScores]] = [{} for _ in range(count)]
        places[rank] = self.places
        for first in range(0, max(counts), CLIPS_AT_ONCE):
            part = own[first : first + CLIPS_AT_ONCE]
            parts: list = [None] * count
            scores = [(clip_id, self._file.read(place)) for clip_id, place in part]
            torch.distributed.all_gather_object(parts, scores)
            for sender, theirs in enumerate(parts):
                if sender != rank:
                    for clip_id, array in theirs:
                        places[sender][clip_id] = self._file.append(array)
        self.places = {name: place for each in places for name, place in each.items()}

    def summarize(self) -> DetectionScores:
        """Computes the scores over all clips appended so far.

        Raises
        ------
        ValueError
            If there are none, or none has an event, or a score is not finite.
        """
        scores, events, seconds = self._scored()
        names, step = self.classes, self.frame_seconds
        found = psds(scores, events, seconds, names, **PSDS1, frame_seconds=step)
        detected = AboveThreshold(scores, floor_of(self._exceeded(), names))
        of_events = event_scores(
            *(detected, events, seconds, names, 0.5),
            onsets_only=self.onsets_only,
            frame_seconds=step,
        )
        of_segments = segment_scores(
            detected, events, seconds, names, 0.5, frame_seconds=step
        )
        present = [{each.label for each in some} for some in events.values()]
        positives = [sum(name in some for some in present) for name in self.classes]
        return DetectionScores(
            PSDS1=found.macro,
            event_F=of_events.macro,
            segment_F=of_segments.macro,
            num_clips=len(scores),
            num_classes=sum(count > 0 for count in positives),
            psds_of_classes=self._in_order(found.per_class),
            event_F_of_classes=self._in_order(of_events.per_class),
            segment_F_of_classes=self._in_order(of_segments.per_class),
            positives=np.array(positives),
            thresholds=floor_of(self.threshold, self.classes),
        )

    def choose_thresholds(self) -> ChosenThresholds:
        """Chooses the thresholds of classes on the clips appended so far.

        Raises
        ------
        ValueError
            As in ``summarize``; and for logits, or thresholds that differ by class.
        """
        if self.thresholds_by is None:
            raise ValueError(
                "thresholds_by=None keeps the threshold; give what to choose them by"
            )
        if self.logits or isinstance(self.threshold, Mapping):
            raise ValueError(
                "thresholds are chosen from probabilities, with one default for all "
                f"classes; logits={self.logits} and threshold={self.threshold} were "
                "given"
            )
        return choose_thresholds(
            *self._scored(),
            self.classes,
            self.threshold,
            self.thresholds_by,
            self.fewest_events,
            onsets_only=self.onsets_only,
            frame_seconds=self.frame_seconds,
        )

    def _scored(
        self,
    ) -> tuple[ScoresOfClips, dict[str, list[Event]], dict[str, float]]:
        """Returns smoothed scores, events and seconds by clip id."""
        if not self.places:
            raise ValueError(
                "no clip with a table of events was scored; evaluate on clips whose "
                "events are known"
            )
        ids = sorted(self.places)  # whatever process scored which
        scores = ScoresOfClips(self._file, {name: self.places[name] for name in ids})
        seconds = {clip_id: self.seconds[clip_id] for clip_id in ids}
        events = {
            clip_id: [
                each
                for each in self.events[clip_id]
                if self._is_inside(each, seconds[clip_id])
            ]
            for clip_id in ids
        }
        return scores, events, seconds

    def _exceeded(self) -> Threshold:
        """Returns what scores, which may be logits, have to exceed."""
        if not self.logits:
            return self.threshold
        if isinstance(self.threshold, Mapping):
            return {name: logit(each) for name, each in self.threshold.items()}
        return logit(self.threshold)

    @staticmethod
    def _is_inside(event: Event, seconds: float) -> bool:
        return event.start_seconds < seconds  # of a clip that is cut

    def _in_order(self, per_class: Mapping[str, float]) -> FloatArray:
        return np.array([per_class[name] for name in self.classes])


def logit(probability: float) -> float:
    """Returns the logarithm of the odds, infinite for 0 and 1.

    Example
    -------
    >>> logit(0.5), logit(0.0)
    (0.0, -inf)
    """
    with np.errstate(divide="ignore"):
        return float(np.log(probability) - np.log1p(-probability))
