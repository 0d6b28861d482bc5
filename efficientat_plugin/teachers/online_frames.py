"""An online teacher of frames, for the distillation of sound event detectors."""

from typing import Any

import torch
from torch import Tensor

from efficientat_plugin.contracts import FrameOutput, TeacherInput, TeacherTarget
from efficientat_plugin.data.labels import LabelSummary, LabelTable
from efficientat_plugin.students.ensemble import WaveformStudent
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.teachers.bring_your_own import Resampled
from efficientat_plugin.teachers.online import OnlineTeacher

TOLERANCE = 1e-6  # s, of the distance of frames


class FrameTeacher(OnlineTeacher):
    """Computes a teacher's logits of frames for the student's own input.

    It takes the student's log-mel or its waveforms as an `OnlineTeacher` does.

    Arguments
    ---------
    model : torch.nn.Module, str or Path
        A `WaveformStudent` of a `FrameMN` or `FramePaSST`; or names or files of them,
        as in `load_teacher`, separated by commas: their logits are averaged.
    log_mel, labels, savedir, options
        As in `OnlineTeacher`.

    Raises
    ------
    ValueError
        On ``check`` and when called: if a member does not score frames, or other
        frames or classes than the student's.

    Example
    -------
    >>> from efficientat_plugin import FrameMN, LogMel
    >>> log_mel = LogMel(sample_rate=16000, hop_length=160, f_max=7000.0)
    >>> model = WaveformStudent(log_mel, FrameMN(num_classes=3, width=0.1))
    >>> teacher = FrameTeacher(model, log_mel)
    >>> teacher.check_frames(frame_seconds=0.04)
    >>> teacher.check_frames(frame_seconds=0.02)
    Traceback (most recent call last):
    ValueError: the teacher FrameMN has frames of 0.04 s and the student of 0.02 s; ...
    """

    def logits_of(self, output: Any) -> Tensor:
        """Returns the logits of frames of what a member computes: [B, K, T']."""
        if not isinstance(output, FrameOutput):
            raise self._scores_no_frames()
        return output.strong.float()

    def _scores_no_frames(self) -> ValueError:
        return ValueError(
            f"the teacher {self.name} does not score frames, so it cannot teach when a "
            "class is active; use a FrameMN or a FramePaSST, such as "
            "fmn10_tf_256_strong"
        )

    def check_frames(self, frame_seconds: float) -> None:
        """Refuses a teacher of clips, and one whose frames are not the student's."""
        for member, _ in self._members:
            own = member.member if isinstance(member, Resampled) else member
            stride = None
            if isinstance(own, WaveformStudent) and isinstance(
                own.student, FrameStudent
            ):
                stride = own.frame_samples
            if stride is None:
                raise self._scores_no_frames()
            theirs = stride / own.sample_rate
            if abs(theirs - frame_seconds) > TOLERANCE:
                raise ValueError(
                    f"the teacher {self.name} has frames of {theirs:g} s and the "
                    f"student of {frame_seconds:g} s; choose hop_length and sample_rate"
                    " so that both are equal"
                )

    def check(
        self,
        summary: LabelSummary,
        labels: LabelTable,
        minimum_coverage: float = 0.0,
        target: str = "multilabel",
    ) -> str:
        """Checks the teacher before training and describes it in a line."""
        found = super().check(summary, labels, minimum_coverage, target)
        stride = FrameStudent.frame_stride * self.log_mel.hop_length
        self.check_frames(stride / self.log_mel.sample_rate)
        return found

    @torch.no_grad()
    def __call__(self, inputs: TeacherInput) -> TeacherTarget:
        """Computes logits [B, K, T'] for a batch that is mixed as the student's."""
        target = super().__call__(inputs)
        strong = inputs.batch.strong
        if strong is not None and strong.shape[1:] != target.logits.shape[1:]:
            raise ValueError(
                f"the teacher {self.name} has [classes, frames] of "
                f"{[*target.logits.shape[1:]]}, and the labels {[*strong.shape[1:]]}; "
                "use clips of the length that the teacher was trained on"
            )
        return target
