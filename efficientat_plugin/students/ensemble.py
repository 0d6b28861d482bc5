"""Students with ears: each hears waveforms through the front end it was trained on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.student import Student
from efficientat_plugin.students.weights import load_student


class HeardStudent(nn.Module):
    """A student and its front end: [B, N] -> StudentOutput.

    Arguments
    ---------
    log_mel : LogMel
        What the student was trained on.
    student : Student

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> heard = HeardStudent(LogMel(), MN(num_classes=3, width=0.1)).eval()
    >>> heard(torch.zeros(2, 32000)).logits.shape
    torch.Size([2, 3])
    """

    def __init__(self, log_mel: LogMel, student: Student) -> None:
        super().__init__()
        self.log_mel = log_mel
        self.student = student

    @property
    def sample_rate(self) -> int:
        """Of what it hears, Hz."""
        return self.log_mel.sample_rate

    @property
    def num_classes(self) -> int:
        """K"""
        return self.student.num_classes

    def forward(self, waveform: Tensor) -> StudentOutput:
        """[B, N] -> [B, K], [B, D]"""
        return self.student(self.log_mel(waveform).unsqueeze(1))


class Ensemble(nn.Module):
    """Students whose logits are averaged and whose embeddings follow each other.

    Arguments
    ---------
    members : Sequence[HeardStudent]
        One or more, of the same classes and sample rate.

    Raises
    ------
    ValueError
        For none, and for members that do not go together.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> members = [HeardStudent(LogMel(), MN(3, width=width)) for width in (0.1, 0.2)]
    >>> output = Ensemble(members).eval()(torch.zeros(2, 32000))
    >>> output.logits.shape, output.embedding.shape
    (torch.Size([2, 3]), torch.Size([2, 288]))
    """

    def __init__(self, members: Sequence[HeardStudent]) -> None:
        super().__init__()
        if not members:
            raise ValueError("no student was named; list_students() has the published")
        for name, found in (
            ("num_classes", [member.student.num_classes for member in members]),
            ("sample_rate", [member.log_mel.sample_rate for member in members]),
        ):
            if len(set(found)) > 1:
                raise ValueError(
                    f"the members of an ensemble have {name} {found}; they must agree"
                )
        self.members = nn.ModuleList(members)
        self._heard = tuple(members)  # typed, and in no state dict
        self.num_classes = members[0].student.num_classes
        self.sample_rate = members[0].log_mel.sample_rate
        # What the front ends need for a frame
        self.min_samples = max(m.log_mel.n_fft // 2 + 2 for m in members)

    def forward(self, waveform: Tensor) -> StudentOutput:
        """[B, N] -> [B, K], [B, D of all members]"""
        outputs = [member(waveform) for member in self.members]
        return StudentOutput(
            torch.stack([output.logits for output in outputs]).mean(dim=0),
            torch.cat([output.embedding for output in outputs], dim=1),
        )

    def sha256(self) -> str:
        """Digest of all weights, names included."""
        digest = hashlib.sha256()
        students = nn.ModuleList([member.student for member in self._heard])
        for name, value in sorted(students.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()


def load_ensemble(
    sources: Sequence[str | Path],
    savedir: str | Path | None = None,
    **overrides: Any,
) -> Ensemble:
    """Students by name or path, as `load_student` takes them, ready to score.

    Arguments
    ---------
    sources : sequence of str or Path
    savedir : str, Path or None
        Folder of downloads.
    **overrides
        Of `load_student`, for all of them.

    Returns
    -------
    Ensemble
        In evaluation mode.

    Raises
    ------
    OSError, ValueError
        As `load_student` and `Ensemble`.
    """
    students = [load_student(name, savedir=savedir, **overrides) for name in sources]
    members = [HeardStudent(LogMel(**s.front_end), s) for s in students]
    return Ensemble(members).eval()
