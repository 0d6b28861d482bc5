"""Detects sound events with exported models, like ``EventDetector`` without torch."""

import logging
from typing import Any

from efficientat_plugin.runtime.tagger import Tagger

logger = logging.getLogger(__name__)


class Detector(Tagger):
    """Detects what sounds when, with a file from ``efficientat export``.

    ``events(sound)`` detects, ``frames(sound)`` scores over time, and
    ``event_stream()`` takes sound as it arrives, each as `EventDetector` does with
    torch. It has the methods of `Tagger`, too, which itself can detect.

    A file of a model of clips scores windows of 2 s every 0.25 s, which is logged once.

    Arguments
    ---------
    *args, **kwargs
        Arguments of `Tagger`.

    Example
    -------
    >>> detector = Detector("fmn10_tf_256_strong.onnx")  # doctest: +SKIP
    >>> detector.events("street.wav", classes=["Car", "Dog"])[0]  # doctest: +SKIP
    Event(label='Car', start_seconds=1.2, end_seconds=3.56, score=0.81)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.frame_samples is None:
            logger.warning(
                "%s scores clips, not frames, so the times of events come from "
                "overlapping windows and are less exact; export a FrameMN, such as "
                "fmn10_tf_256_strong, which scores frames",
                self.facts.student,
            )
