"""Detects sound events with torch, from model folders, hub ids and weights."""

import logging
from typing import Any

from efficientat_plugin.tagging.detection import SCORES_CLIPS
from efficientat_plugin.tagging.torch_tagger import AudioTagger

logger = logging.getLogger(__name__)


class EventDetector(AudioTagger):
    """Detects what sounds when, in sound of any length, rate and number of channels.

    Create it with ``from_student`` (published names or weights files) or
    ``from_hparams`` (a model folder, or a hub id), as an `AudioTagger`, whose methods
    it has, too. ``events(sound)`` detects, ``frames(sound)`` scores over time, and
    ``event_stream()`` takes sound as it arrives.

    A model of frames, such as `FrameMN`, tells times to 40 ms. A model of clips scores
    windows of 2 s every 0.25 s, which is logged once.

    Arguments
    ---------
    *args, **kwargs
        Arguments of `AudioTagger`.

    Example
    -------
    >>> detector = EventDetector.from_student("fmn10_tf_256_strong")  # doctest: +SKIP
    >>> detector.events("street.wav", classes=["Car", "Dog"])[0]  # doctest: +SKIP
    Event(label='Car', start_seconds=1.2, end_seconds=3.56, score=0.81)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.frame_samples is None:
            logger.warning(SCORES_CLIPS, self.ensemble.members[0].student.describe())
