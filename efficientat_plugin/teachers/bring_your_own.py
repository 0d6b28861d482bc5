"""Your own teacher: any module from waveforms to logits, by its dotted name."""

import importlib
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import torchaudio
from torch import Tensor, nn

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.students.ensemble import Ensemble

# The Kaiser window that resampy calls kaiser_best
RESAMPLING = {
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.769656459379492,
}


def is_dotted(source: str) -> bool:
    """Whether a name has the form ``package.module:function``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None


class OwnTeacher(nn.Module):
    """Wraps any module as a teacher: [B, N] -> StudentOutput.

    Arguments
    ---------
    module : nn.Module
        [B, N] -> logits [B, K], or an object with an attribute ``logits``.
    sample_rate : int
        Sample rate of its input, Hz.
    labels : LabelTable
        Its K classes.

    Example
    -------
    >>> import torch
    >>> network = nn.Sequential(nn.AdaptiveAvgPool1d(8), nn.Linear(8, 2))
    >>> teacher = OwnTeacher(network, 16000, LabelTable("ab", "ab"))
    >>> teacher(torch.zeros(3, 16000)).logits.shape
    torch.Size([3, 2])
    """

    def __init__(self, module: nn.Module, sample_rate: int, labels: LabelTable) -> None:
        super().__init__()
        self.module = module
        self.sample_rate = sample_rate
        self.labels = labels
        self.num_classes = len(labels)

    def forward(self, waveform: Tensor) -> StudentOutput:
        """[B, N] -> [B, K], and the embedding [B, D] if the module returns one"""
        output = self.module(waveform)
        logits = getattr(output, "logits", output)
        expected = (len(waveform), self.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            found = getattr(logits, "shape", type(logits).__name__)
            raise ValueError(
                f"{type(self.module).__name__} returned {found} for waveforms of shape "
                f"{tuple(waveform.shape)}; it must return logits of shape {expected}: "
                "one row per clip, one column per class of its labels"
            )
        embedding = getattr(output, "embedding", None)
        if not isinstance(embedding, Tensor):
            embedding = logits.new_zeros(len(logits), 0)
        return StudentOutput(logits, embedding)


class Resampled(nn.Module):
    """Resamples waveforms to the rate of a teacher.

    Arguments
    ---------
    member : nn.Module
        [B, N] -> StudentOutput or logits, with ``sample_rate``.
    sample_rate : int
        Sample rate of the waveforms, Hz.
    """

    num_classes: int

    def __init__(self, member: Any, sample_rate: int) -> None:
        super().__init__()
        self.member = member
        self.sample_rate = sample_rate
        self.own_rate: int = member.sample_rate
        if hasattr(member, "num_classes"):  # not every module has it
            self.num_classes = member.num_classes

    @property
    def min_samples(self) -> int:
        """Samples that the member needs, at the rate of the waveforms."""
        needed = getattr(self.member, "min_samples", 1)
        return math.ceil(needed * self.sample_rate / self.own_rate)

    @property
    def frame_samples(self) -> float | None:
        """Samples to each frame that the member scores, at the rate of the waveforms;
        None: only clips are scored."""
        own = getattr(self.member, "frame_samples", None)
        return None if own is None else own * self.sample_rate / self.own_rate

    def forward(self, waveform: Tensor) -> Any:
        """[B, N] -> [B, K], [B, D]"""
        return self.member(self.resample(waveform))

    def resample(self, waveform: Tensor) -> Tensor:
        """Resamples to the member's rate."""
        return torchaudio.functional.resample(
            waveform.float(), self.sample_rate, self.own_rate, **RESAMPLING
        )


def resampled(model: nn.Module, sample_rate: int) -> nn.Module:
    """Makes a teacher take waveforms of a given rate, whatever its own is.

    Arguments
    ---------
    model : nn.Module
        Its ``sample_rate``, if it has one, is compared; so is each member's of an
        `Ensemble`.
    sample_rate : int
        Sample rate of the waveforms, Hz.

    Returns
    -------
    nn.Module
        ``model`` itself if the rates agree.

    Example
    -------
    >>> network = nn.Sequential(nn.AdaptiveAvgPool1d(8), nn.Linear(8, 2))
    >>> teacher = OwnTeacher(network, 16000, LabelTable("ab", "ab"))
    >>> resampled(teacher, 16000) is teacher, type(resampled(teacher, 32000)).__name__
    (True, 'Resampled')
    """
    if getattr(model, "sample_rate", sample_rate) == sample_rate:
        return model
    if isinstance(model, Ensemble):
        members = [resampled(member, sample_rate) for member in model.members]
        return Ensemble(members, model.weights).train(model.training)
    return Resampled(model, sample_rate).train(model.training)


def load_own(
    source: str,
    sample_rate: int | None = None,
    labels: LabelTable | None = None,
) -> OwnTeacher:
    """Calls a user's function and wraps its module as a teacher in evaluation mode.

    Arguments
    ---------
    source : str
        ``package.module:function``, installed or in the current folder. The function
        is called without arguments and returns an ``nn.Module``, whose attributes
        ``sample_rate`` (Hz) and ``labels`` (a `LabelTable` or names) are read.
    sample_rate : int or None
        For a module without this attribute, Hz.
    labels : LabelTable or None
        For a module without this attribute.

    Raises
    ------
    ValueError
        If there is no such function, it does not return a module, or an attribute is
        neither set nor given.
    """
    module = _call(source)
    rate = getattr(module, "sample_rate", sample_rate)
    names = getattr(module, "labels", labels)
    if rate is None or names is None:
        name, value = ("sample_rate", "HZ") if rate is None else ("labels", "CSV")
        raise ValueError(
            f"the teacher of {source} has no attribute {name}; add it, or pass "
            f"--teacher_options '{{{name}: {value}}}'"
        )
    return OwnTeacher(module, int(rate), _as_table(source, names)).eval()


def _as_table(source: str, names: Any) -> LabelTable:
    if isinstance(names, LabelTable):
        return names
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(
            f"the teacher of {source} has labels={str(names)[:40]!r}; they must be a "
            "LabelTable or a list of names"
        )
    return LabelTable(map(str, names), map(str, names))


def _call(source: str) -> nn.Module:
    place, name = source.split(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the teacher {source} cannot be imported ({error}); it must be "
            "package.module:function, installed or in the current folder"
        ) from error
    if isinstance(make, nn.Module) or not callable(make):
        raise ValueError(
            f"{source} is of type {type(make).__name__}; it must be a function that "
            "returns an nn.Module"
        )
    module = make()
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{source} returned {type(module).__name__}; it must return an nn.Module"
        )
    return module
