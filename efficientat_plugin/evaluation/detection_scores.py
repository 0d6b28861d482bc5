"""The scores of a sound event detector in a run: PSDS1 and F-scores."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class DetectionScores(NamedTuple):
    """Scores of detection, over ``num_clips`` clips and the classes of their events."""

    PSDS1: float  # mean of the classes
    event_F: float  # macro F-score of events, at the thresholds
    segment_F: float  # macro F-score of segments of 1 s, likewise
    num_clips: int
    num_classes: int  # classes with an event, which the averages are over
    psds_of_classes: FloatArray  # [K], NaN without an event
    event_F_of_classes: FloatArray  # [K]
    segment_F_of_classes: FloatArray  # [K]
    positives: IntArray  # [K], clips with an event of the class
    thresholds: FloatArray  # [K], what probabilities have to exceed for the F-scores

    @property
    def main(self) -> str:
        """Name of the average that selects a checkpoint."""
        return "PSDS1"

    def line(self) -> str:
        """Returns the averages and the number of clips and classes as text."""
        return (
            f"PSDS1 {self.PSDS1:.4f}, event F {self.event_F:.4f}, segment F "
            f"{self.segment_F:.4f} (N = {self.num_clips} clips, {self.num_classes} "
            "classes)"
        )

    def __str__(self) -> str:
        # Here, since `metrics` knows all kinds of scores
        from efficientat_plugin.evaluation.metrics import with_caution

        return with_caution(self)

    def averages(self) -> dict[str, float]:
        """Returns the averages by name."""
        return {
            "PSDS1": self.PSDS1,
            "event_F": self.event_F,
            "segment_F": self.segment_F,
        }

    def per_class(self) -> dict[str, FloatArray]:
        """Returns numbers per class by name, [K] each; scores are NaN without event."""
        return {
            "PSDS1": self.psds_of_classes,
            "event_F": self.event_F_of_classes,
            "segment_F": self.segment_F_of_classes,
            "threshold": self.thresholds,
        }
