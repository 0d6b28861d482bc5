"""A stored teacher of frames, for the distillation of sound event detectors."""

from collections.abc import Sequence

from torch import Tensor

from efficientat_plugin.contracts import TeacherInput, TeacherTarget
from efficientat_plugin.data.frame_mixing import roll_frames, shift_frames
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.teachers.online_frames import TOLERANCE
from efficientat_plugin.teachers.store.verify import frames_in_words
from efficientat_plugin.teachers.stored import StoredTeacher


class StoredFrameTeacher(StoredTeacher):
    """Looks up a teacher's logits of frames of clean clips by clip id.

    They follow a clip as its strong labels do: where its waveform is moved, where it is
    mixed with another, where its log-mel is moved, and where log-mels are mixed.
    Nothing else that happens to a log-mel, such as a mask, changes labels or logits.

    Arguments
    ---------
    store : LogitsStore, str or Path
        One of frames.

    Raises
    ------
    FileNotFoundError, ValueError
        As ``LogitsStore``; and for logits of clips.

    Example
    -------
    >>> StoredFrameTeacher("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: no logits store at ...
    """

    of_frames = True

    def __call__(self, inputs: TeacherInput) -> TeacherTarget:
        """Returns logits [B, K, T'] of a batch, and of the clips mixed into it."""
        batch = inputs.batch
        target = self._moved(batch.clip_id, batch.moved_samples, inputs)
        if batch.partner_share.any():
            moved = batch.partner_moved_samples
            target = target._replace(
                partner=self._moved(batch.partner_id, moved, inputs)
            )
        return target

    def _moved(
        self, clip_ids: list[str], moved_samples: Tensor | None, inputs: TeacherInput
    ) -> TeacherTarget:
        target = self._look_up(clip_ids, inputs.log_mel.device)
        num_samples = inputs.batch.waveform.shape[-1]
        logits = roll_frames(target.logits, moved_samples, num_samples)
        logits = shift_frames(logits, inputs.shift, FrameStudent.frame_stride)
        return target._replace(logits=logits)

    def check_frames(
        self,
        num_frames: int,
        frame_seconds: float,
        clip_seconds: float,
        short_clips: str = "zero_pad",
    ) -> None:
        """Refuses frames that are not the student's, and clips of another length.

        Arguments
        ---------
        num_frames : int
            T', the frames that the student scores in a clip.
        frame_seconds : float
            From one of them to the next, s.
        clip_seconds : float
            Length of the clips, s.
        short_clips : str
            How shorter clips are lengthened.

        Raises
        ------
        ValueError
            With both values and what to do.
        """
        manifest, path = self.store.manifest, self.store.path
        assert manifest.frame_seconds is not None  # a store of frames
        if abs(manifest.frame_seconds - frame_seconds) > TOLERANCE:
            raise ValueError(
                f"{path} has frames of {manifest.frame_seconds:g} s and the student of "
                f"{frame_seconds:g} s; choose hop_length and sample_rate so that both "
                "are equal, or store logits of another teacher"
            )
        theirs = manifest.clip_seconds, manifest.num_frames, manifest.short_clips
        if theirs != (clip_seconds, num_frames, short_clips):
            raise ValueError(
                f"{path} has logits of clips of {theirs[0]:g} s in {theirs[1]} frames "
                f"(short clips: {theirs[2]}), and those to train on have "
                f"{clip_seconds:g} s in {num_frames} frames ({short_clips}); pass "
                f"--clip_seconds {theirs[0]:g}, or store the logits of such clips"
            )

    def describe(self, clip_ids: Sequence[str]) -> str:
        """Says in a line what is stored, and of how many clips nothing is.

        Arguments
        ---------
        clip_ids : Sequence[str]
            The clips to train on.
        """
        unknown = int((self.store.rows(clip_ids) < 0).sum())
        line = f"stored logits of {self.name}, {frames_in_words(self.store.manifest)}"
        if not unknown:
            return f"{line}, for all {len(clip_ids)} clips"
        return (
            f"{line}; {unknown} of {len(clip_ids)} clips have none and are trained on "
            "their labels alone"
        )
