"""An online teacher: any frozen model inside the training loop."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficientat_plugin.contracts import Shift, TeacherInput, TeacherTarget
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.frame_mixing import shifted
from efficientat_plugin.data.labels import LabelSummary, LabelTable
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.evaluation.metrics import Scores, TaggingStats
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.weights import front_end_of
from efficientat_plugin.students.ensemble import (
    Ensemble,
    WaveformStudent,
    digest_of_state,
)
from efficientat_plugin.teachers.bring_your_own import Resampled, resampled
from efficientat_plugin.teachers.load import as_table, open_teachers, refuse_others


class OnlineTeacher:
    """Computes a teacher's logits for the student's own input, augmented and mixed.

    A teacher whose front end has the student's settings takes the student's own
    log-mel, including jitter, masks and mixup. Any other `WaveformStudent` computes a
    log-mel of its own from the batch's waveforms, which is mixed as the student's is.
    Other models take mixed waveforms. Waveforms are resampled for a teacher of another
    sample rate.

    It deliberately is not a module: it is never trained, saved or synchronised between
    processes, and is always in evaluation mode.

    Source: Gong et al., "CMKD: CNN/Transformer-Based Cross-Model Knowledge
    Distillation for Audio Classification", 2022, section III ("consistent teaching").

    Arguments
    ---------
    model : torch.nn.Module, str or Path
        Waveforms [B, N] to ``StudentOutput`` or logits [B, K]: a ``WaveformStudent``,
        an ``Ensemble``, or your own; or names as in ``open_teachers``, loaded when
        first needed.
    log_mel : LogMel
        The student's front end.
    labels : LabelTable, str, Path or None
        Classes of a model that does not name them: a table, or a CSV as in
        ``open_teachers``. None: AudioSet's for names, the student's for a module.
    savedir : str, Path or None
        Folder of downloads.
    options : Mapping or None
        Options that the names do not imply; see ``open_teachers``.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> log_mel = LogMel()
    >>> model = WaveformStudent(LogMel(), MN(num_classes=3, width=0.1))
    >>> teacher = OnlineTeacher(model, log_mel)
    >>> teacher.shares_log_mel, any(p.requires_grad for p in model.parameters())
    (True, False)
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        log_mel: LogMel,
        labels: LabelTable | str | Path | None = None,
        savedir: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.labels = labels
        self.log_mel = log_mel
        self._source = model
        self._savedir, self._options = savedir, options

    @cached_property
    def _opened(self) -> tuple[nn.Module, LabelTable | None, str | None]:
        """Loads the model, with its classes and its target if they are known."""
        model, rate = self._source, self.log_mel.sample_rate
        if not isinstance(model, nn.Module):
            return open_teachers(
                model,
                self.labels,
                rate,
                savedir=self._savedir,
                options=self._options,
            )
        labels = self.labels or getattr(model, "labels", None)
        return resampled(model, rate), as_table(labels), getattr(model, "target", None)

    @cached_property
    def model(self) -> nn.Module:
        """The frozen teacher; takes waveforms at the student's sample rate."""
        return self._opened[0].eval().requires_grad_(False)

    @cached_property
    def _members(self) -> list[tuple[Any, bool]]:
        """The members, and whether each takes the student's log-mel."""
        model, ours = self.model, _settings(self.log_mel)
        members = [*model.members] if isinstance(model, Ensemble) else [model]
        return [(member, _front_end(member) == ours) for member in members]

    @property
    def shares_log_mel(self) -> bool:
        """Whether all members take the student's log-mel rather than its waveforms."""
        return all(shares for _, shares in self._members)

    @torch.no_grad()
    def __call__(self, inputs: TeacherInput) -> TeacherTarget:
        """Computes the teacher's logits for a batch that is mixed as the student's."""
        self.model.to(inputs.log_mel.device)
        members = torch.stack(list(self._logits(inputs)))  # [M, B, K]
        model = self.model
        logits = model.average(members) if isinstance(model, Ensemble) else members[0]
        known = _known(logits, inputs.batch.clip_id)
        return TeacherTarget(logits, known, is_mixed=True)

    def _logits(self, inputs: TeacherInput) -> Iterator[Tensor]:
        """Yields the logits [B, K] of each member."""
        waveform = inputs.batch.waveform.to(inputs.log_mel.device)
        for member, shares in self._members:
            if shares:
                yield self.logits_of(member.student(inputs.log_mel.unsqueeze(1)))
                continue
            own, sound = member, waveform
            if isinstance(member, Resampled):
                own, sound = member.member, member.resample(waveform)
            if isinstance(own, WaveformStudent):
                features = _mixed(own.log_mel(sound), inputs)
                yield self.logits_of(own.student(features.unsqueeze(1)))
            else:
                yield self.logits_of(own(_mixed(sound, inputs)))

    def logits_of(self, output: Any) -> Tensor:
        """Returns the logits of what a member computes: [B, K]."""
        return (output if isinstance(output, Tensor) else output.logits).float()

    def check(
        self,
        summary: LabelSummary,
        labels: LabelTable,
        minimum_coverage: float = 0.0,
        target: str = "multilabel",
    ) -> str:
        """Checks the teacher before training and describes it in a line.

        Raises
        ------
        OSError, ValueError
            If it cannot be loaded, or its classes differ from the student's.
        """
        del minimum_coverage  # it scores every clip
        _, theirs, kind = self._opened
        refuse_others(theirs or labels, kind, labels, target)
        num_classes = getattr(self.model, "num_classes", len(labels))
        if num_classes != len(labels):
            raise ValueError(
                f"the teacher has {num_classes} classes and the student {len(labels)}; "
                "use a teacher with the same classes"
            )
        what = "log-mel" if self.shares_log_mel else "waveforms"
        return f"it takes the student's {what}, for {len(summary.clip_ids)} clips"

    @property
    def name(self) -> str:
        """The class name of the model, or of each member."""
        own = [getattr(member, "member", member) for member, _ in self._members]
        kinds = [type(getattr(each, "student", each)).__name__ for each in own]
        return ", ".join(kinds)

    def identity(self, clip_ids: Sequence[str]) -> str:
        """Returns its name and digest, which do not depend on where its files are."""
        del clip_ids  # the same for all clips
        digest = digest_of_state(self.model)
        own = [getattr(member, "member", member) for member, _ in self._members]
        weights = getattr(self.model, "weights", None)
        digest.update(repr(([_front_end(each) for each in own], weights)).encode())
        return f"{self.name} (digest {digest.hexdigest()[:8]})"

    @torch.no_grad()
    def scores(
        self, clips: Clips, summary: LabelSummary, loader_options: Mapping[str, Any]
    ) -> Scores | None:
        """Computes its scores on clips; None if no clip has a label."""
        if not any(summary.indices):
            return None
        stats = TaggingStats(logits=True)
        for batch in read_batches(clips, "teacher", **loader_options):
            logits = self.logits_of(self.model(batch.waveform))
            known = (batch.labelled.reshape(len(logits), -1) > 0).any(dim=1)
            ids = [name for name, on in zip(batch.clip_id, known, strict=True) if on]
            stats.append(ids, logits[known], batch.labels[known])
        return stats.summarize()


def _settings(log_mel: nn.Module) -> dict[str, Any] | None:
    return front_end_of(log_mel) if isinstance(log_mel, LogMel) else None


def _front_end(member: nn.Module) -> dict[str, Any] | None:
    return _settings(member.log_mel) if isinstance(member, WaveformStudent) else None


def _mixed(values: Tensor, inputs: TeacherInput) -> Tensor:
    """Moves and mixes waveforms or log-mels, as the student's log-mels were."""
    if inputs.shift is not None:
        times = values.shape[-1] / inputs.log_mel.shape[-1]  # samples in a frame, or 1
        moved = (inputs.shift.mel_frames * times).round().long()
        values = shifted(values, Shift(moved))
    if inputs.mix is None:
        return values
    share = inputs.mix.weight.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * values[inputs.mix.partner]


def _known(logits: Tensor, clip_ids: list[str]) -> Tensor:
    finite = logits.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = [name for name, on in zip(clip_ids, finite, strict=True) if not on]
        raise ValueError(
            f"the teacher's logits of {len(bad)} clips are not finite, the first of "
            f"them {bad[0]}; check its weights, and that its input is like the sound "
            "that it was trained on"
        )
    return finite
