"""A teacher that listens along: any frozen model inside the training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficientat_plugin.contracts import Heard, TeacherTarget
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.data.targets import LabelSummary, LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.losses import SoftTarget
from efficientat_plugin.metrics import Scores, TaggingStats
from efficientat_plugin.students.ensemble import (
    Ensemble,
    HeardStudent,
    digest_of_state,
)
from efficientat_plugin.students.weights import front_end_of
from efficientat_plugin.teachers.weights import load_teacher


class OnlineTeacher:
    """Teaches on the very input that the student hears, augmented and mixed.

    A teacher whose front end is set like the student's is given the student's own
    log-mel, jitter, masks and mixup included. Another one hears the batch's waveforms
    through its own front end, and its features are mixed as the student's; a model
    without such a front end hears mixed waveforms.

    It is no module on purpose: nothing trains it, saves it or shares it between
    processes, and it is always in evaluation mode.

    Source: Gong et al., "CMKD: CNN/Transformer-Based Cross-Model Knowledge
    Distillation for Audio Classification", 2022, section III ("consistent teaching").

    Arguments
    ---------
    model : torch.nn.Module, str or Path
        Waveforms [B, N] to ``StudentOutput`` or logits [B, K]: a ``HeardStudent``, an
        ``Ensemble``, or one's own; or what ``load_teacher`` takes, loaded when it is
        first needed.
    log_mel : LogMel
        The student's.
    labels : LabelTable or None
        What the model's classes are; None: the student's.
    savedir : str, Path or None
        Folder of downloads.
    options : Mapping or None
        More of what ``load_teacher`` takes.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> log_mel = LogMel()
    >>> model = HeardStudent(LogMel(), MN(num_classes=3, width=0.1))
    >>> teacher = OnlineTeacher(model, log_mel)
    >>> teacher.shares_log_mel, any(p.requires_grad for p in model.parameters())
    (True, False)
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        log_mel: LogMel,
        labels: LabelTable | None = None,
        savedir: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.labels = labels
        self.log_mel = log_mel
        self._source = model
        self._options = {"savedir": savedir, **(options or {})}

    @cached_property
    def model(self) -> nn.Module:
        """The teacher itself, frozen."""
        model = self._source
        if not isinstance(model, nn.Module):
            model = load_teacher(model, **self._options)
        return model.eval().requires_grad_(False)

    @cached_property
    def _members(self) -> list[tuple[Any, bool]]:
        """Those that vote, and whether each is given the student's log-mel."""
        model, ours = self.model, _settings(self.log_mel)
        members = [*model.members] if isinstance(model, Ensemble) else [model]
        return [(member, _front_end(member) == ours) for member in members]

    @property
    def shares_log_mel(self) -> bool:
        """Whether it is given what the student hears, and not merely its waveforms."""
        return all(shares for _, shares in self._members)

    @torch.no_grad()
    def __call__(
        self, heard: Heard, soften: Callable[[TeacherTarget], SoftTarget]
    ) -> SoftTarget:
        """What is asked of the student for a batch as it heard it."""
        self.model.to(heard.log_mel.device)
        said = torch.stack(list(self._logits(heard)))  # [members, B, K]
        model = self.model
        logits = model.average(said) if isinstance(model, Ensemble) else said[0]
        return soften(TeacherTarget(logits, _known(logits, heard.batch.clip_id)))

    def _logits(self, heard: Heard) -> Iterator[Tensor]:
        """[B, K] of each member."""
        waveform = heard.batch.waveform.to(heard.log_mel.device)
        for member, shares in self._members:
            if shares:
                yield _logits_of(member.student(heard.log_mel.unsqueeze(1)))
            elif isinstance(member, HeardStudent):
                features = _mixed(member.log_mel(waveform), heard)
                yield _logits_of(member.student(features.unsqueeze(1)))
            else:
                yield _logits_of(member(_mixed(waveform, heard)))

    def check(
        self,
        summary: LabelSummary,
        labels: LabelTable,
        minimum_coverage: float = 0.0,
        target: str = "multilabel",
    ) -> str:
        """What can be said of it before training.

        Raises
        ------
        OSError, ValueError
            If it cannot be loaded, or its classes or its sample rate are others.
        """
        del minimum_coverage, target  # it hears every clip, and says logits
        theirs = self.labels or getattr(self.model, "labels", None) or labels
        _refuse_other_classes(self.model, theirs, labels)
        ours = self.log_mel.sample_rate
        own = getattr(self.model, "sample_rate", ours)
        if own != ours:
            raise ValueError(
                f"the teacher hears {own} Hz and the clips have {ours} Hz; an AST "
                f"resamples with options={{'sample_rate': {ours}}}, another teacher "
                "must be of the student's rate"
            )
        heard = "log-mel" if self.shares_log_mel else "waveforms"
        return f"it hears the student's {heard}, {len(summary.clip_ids)} clips of them"

    def identity(self, clip_ids: Sequence[str]) -> str:
        """What tells it from another teacher, wherever its weights lie."""
        del clip_ids  # it hears them all alike
        digest = digest_of_state(self.model)
        members, weights = self._members, getattr(self.model, "weights", None)
        front_ends = [_front_end(member) for member, _ in members]
        digest.update(repr((front_ends, weights)).encode())
        return f"{type(self.model).__name__} (digest {digest.hexdigest()[:8]})"

    @torch.no_grad()
    def scores(
        self, clips: Clips, summary: LabelSummary, loader_options: Mapping[str, Any]
    ) -> Scores | None:
        """How well it tags clips; None where none has a label."""
        if not any(summary.indices):
            return None
        stats = TaggingStats()
        for batch in read_batches(clips, "teacher", **loader_options):
            logits = _logits_of(self.model(batch.waveform))
            known = (batch.labelled.reshape(len(logits), -1) > 0).any(dim=1)
            ids = [name for name, on in zip(batch.clip_id, known, strict=True) if on]
            stats.append(ids, logits[known], batch.labels[known])
        return stats.summarize()


def _settings(log_mel: nn.Module) -> dict[str, Any] | None:
    return front_end_of(log_mel) if isinstance(log_mel, LogMel) else None


def _front_end(member: nn.Module) -> dict[str, Any] | None:
    return _settings(member.log_mel) if isinstance(member, HeardStudent) else None


def _mixed(values: Tensor, heard: Heard) -> Tensor:
    if heard.mix is None:
        return values
    share = heard.mix.weight.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * values[heard.mix.partner]


def _logits_of(output: Any) -> Tensor:
    return (output if isinstance(output, Tensor) else output.logits).float()


def _known(logits: Tensor, clip_ids: list[str]) -> Tensor:
    finite = logits.isfinite().all(dim=1)
    if not bool(finite.all()):
        bad = [name for name, on in zip(clip_ids, finite, strict=True) if not on]
        raise ValueError(
            f"the teacher's logits of {len(bad)} clips are not finite, the first of "
            f"them {bad[0]}; check its weights, and that it hears sound as it was "
            "trained on"
        )
    return finite


def _refuse_other_classes(
    model: nn.Module, theirs: LabelTable, ours: LabelTable
) -> None:
    if theirs.mids != ours.mids:
        both = len(set(theirs.mids) & set(ours.mids))
        raise ValueError(
            f"teacher and student share {both} classes, in another order or beside "
            f"others ({len(theirs)} of the teacher, {len(ours)} of the student); a "
            "teacher speaks of the student's classes"
        )
    num_classes = getattr(model, "num_classes", len(ours))
    if num_classes != len(ours):
        raise ValueError(
            f"the teacher has {num_classes} classes and the student {len(ours)}; take "
            "a teacher of the same classes"
        )
