"""Students together with their front ends, and ensembles of them."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efficientat_plugin.contracts import FrameOutput, StudentOutput
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.student import Student


class WaveformStudent(nn.Module):
    """A student with its front end: [B, N] -> StudentOutput.

    Arguments
    ---------
    log_mel : LogMel
        The front end that the student was trained with.
    student : Student

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> member = WaveformStudent(LogMel(), MN(num_classes=3, width=0.1)).eval()
    >>> member(torch.zeros(2, 32000)).logits.shape
    torch.Size([2, 3])
    """

    labels: LabelTable | None = None  # the K classes, if the description has them
    target: str | None = None  # "multilabel" or "multiclass", likewise

    def __init__(self, log_mel: LogMel, student: Student) -> None:
        super().__init__()
        self.log_mel = log_mel
        self.student = student

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, Hz."""
        return self.log_mel.sample_rate

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.student.num_classes

    @property
    def min_samples(self) -> int:
        """Length of the shortest legal waveform, samples."""
        frames = 1 + (self.student.min_frames - 1) * self.log_mel.hop_length
        return max(self.log_mel.min_samples, frames)

    @property
    def frame_samples(self) -> int | None:
        """Samples to each frame that is scored; None: only clips are scored."""
        stride = self.student.frame_stride
        return None if stride is None else stride * self.log_mel.hop_length

    def forward(self, waveform: Tensor) -> StudentOutput:
        """Computes logits and embeddings: [B, N] -> [B, K], [B, D]."""
        return self.student(self.log_mel(waveform).unsqueeze(1))


class Ensemble(nn.Module):
    """Averages the logits of several students and concatenates their embeddings.

    If all of them score frames, so does the ensemble; their frames must be the same.

    Arguments
    ---------
    members : Sequence[nn.Module]
        One or more, with the same classes and sample rate: each is a
        `WaveformStudent`, or any [B, N] -> StudentOutput with ``num_classes`` and
        ``sample_rate``.
    weights : Sequence[float] or None
        Weights of the members' logits, 0 or more; they are normalised to sum to 1.
        None: equal weights.

    Raises
    ------
    ValueError
        If there are no members, or they do not fit together, or for illegal weights.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> members = [
    ...     WaveformStudent(LogMel(), MN(3, width=width)) for width in (0.1, 0.2)
    ... ]
    >>> output = Ensemble(members).eval()(torch.zeros(2, 32000))
    >>> output.logits.shape, output.embedding.shape
    (torch.Size([2, 3]), torch.Size([2, 288]))
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError(
                "no student was named; list_students() lists the published ones"
            )
        found: dict[str, list[Any]] = {
            name: [getattr(member, name) for member in members]
            for name in ("num_classes", "sample_rate")
        }
        for name, values in found.items():
            if len(set(values)) > 1:
                raise ValueError(
                    f"the members of an ensemble have {name} {values}; give members "
                    "with the same one"
                )
        self.members = nn.ModuleList(members)
        self._in_order = tuple(members)  # a tuple, so in no state dict
        self.num_classes: int = found["num_classes"][0]
        self.sample_rate: int = found["sample_rate"][0]
        self.min_samples: int = max(getattr(m, "min_samples", 1) for m in members)
        frames = {getattr(member, "frame_samples", None) for member in members}
        self.frame_samples = frames.pop() if len(frames) == 1 else None
        self.weights = None if weights is None else _shares(weights, len(members))

    def forward(self, waveform: Tensor) -> StudentOutput | FrameOutput:
        """Computes logits and embeddings: [B, N] -> [B, K], [B, sum of all D]."""
        outputs = [member(waveform) for member in self.members]
        logits = self.average(torch.stack([output.logits for output in outputs]))
        of_frames = [output for output in outputs if isinstance(output, FrameOutput)]
        if len(of_frames) < len(outputs):
            embeddings = [_of_clip(output) for output in outputs]
            return StudentOutput(logits, torch.cat(embeddings, dim=1))
        found = {tuple(output.strong.shape[1:]) for output in of_frames}
        if len(found) > 1:
            raise ValueError(
                f"the members of an ensemble have [classes, frames] of {sorted(found)};"
                " give members whose frames are the same"
            )
        return FrameOutput(
            self.average(torch.stack([output.strong for output in of_frames])),
            logits,
            torch.cat([output.embedding for output in of_frames], dim=2),
        )

    def average(self, logits: Tensor) -> Tensor:
        """Averages the members' logits with their weights: [M, ..., K] -> [..., K]."""
        if self.weights is None:
            return logits.mean(dim=0)
        return torch.einsum("m...,m->...", logits, logits.new_tensor(self.weights))

    def sha256(self) -> str:
        """Returns a digest of all weights and their names."""
        networks = nn.ModuleList(
            [m.student if isinstance(m, WaveformStudent) else m for m in self._in_order]
        )
        digest = digest_of_state(networks)
        if self.weights is not None:
            digest.update(repr(self.weights).encode())
        return digest.hexdigest()


def _of_clip(output: StudentOutput | FrameOutput) -> Tensor:
    """Returns the embedding of the clip: [B, D]."""
    embedding = output.embedding
    return embedding.mean(dim=1) if isinstance(output, FrameOutput) else embedding


def digest_of_state(network: nn.Module) -> "hashlib._Hash":
    """Computes a digest of the state dict, names included, that can be updated."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + content.numpy().tobytes())
    return digest


def _shares(weights: Sequence[float], count: int) -> tuple[float, ...]:
    legal = all(math.isfinite(weight) and weight >= 0 for weight in weights)
    if len(weights) != count or not legal or not sum(weights):
        raise ValueError(
            f"weights={list(weights)} must be {count} numbers, one for each member, 0 "
            "or more and not all 0"
        )
    return tuple(weight / sum(weights) for weight in weights)
