"""Sequence models, which let the frames of a clip know of each other.

A slot of `FrameMN` between backbone and heads: a module [B, T', C] -> [B, T', D] for
any number of frames. A new one is a function of ``(in_channels, SequenceOptions)`` that
returns its layers, and is added to `SEQUENCE_MODELS`, over all of which the tests run.
The layers have the names that they have in the published checkpoints.

Source: Morocutti et al., "Exploring Performance-Complexity Trade-Offs in Sound Event
Detection", 2025, and its code (EfficientSED).
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from efficientat_plugin.students.sequence.attention import attention, transformer
from efficientat_plugin.students.sequence.convolution import temporal_convolutions
from efficientat_plugin.students.sequence.layers import SequenceOptions
from efficientat_plugin.students.sequence.recurrent import gru, hybrid


class SequenceModel(NamedTuple):
    """One member of the slot."""

    build: Callable[[int, SequenceOptions], list[nn.Module]]
    widening: int = 1  # D as a multiple of the option ``dim``


SEQUENCE_MODELS = {
    "none": SequenceModel(lambda in_channels, options: []),
    "tf": SequenceModel(transformer),
    "attn": SequenceModel(attention),
    "gru": SequenceModel(gru, widening=2),  # one for each direction
    "tcn": SequenceModel(temporal_convolutions),
    "hybrid": SequenceModel(hybrid),
}


def build_sequence_model(
    name: str, in_channels: int, options: SequenceOptions
) -> tuple[nn.Sequential, int]:
    """Builds a sequence model by its name.

    Arguments
    ---------
    name : str
        One of `SEQUENCE_MODELS`.
    in_channels : int
        C, channels of the frames.
    options : SequenceOptions

    Returns
    -------
    model : torch.nn.Sequential
        [B, T', C] -> [B, T', D]; without layers for "none".
    channels : int
        D

    Raises
    ------
    ValueError
        For an unknown name, and for a ``dim`` that the model cannot have.

    Example
    -------
    >>> import torch
    >>> model, channels = build_sequence_model("gru", 24, SequenceOptions(dim=16))
    >>> model(torch.zeros(2, 7, 24)).shape, channels
    (torch.Size([2, 7, 32]), 32)
    """
    if name == "mamba":
        raise ValueError(
            "sequence_model='mamba' is not built here, since it needs a package with "
            "CUDA kernels and has no published weights; 'hybrid' is the recurrent "
            "model that is closest to it"
        )
    if name not in SEQUENCE_MODELS:
        legal = ", ".join(map(repr, SEQUENCE_MODELS))
        raise ValueError(f"sequence_model={name!r} is not known; choose one of {legal}")
    kind = SEQUENCE_MODELS[name]
    layers = kind.build(in_channels, options)
    channels = kind.widening * options.dim if layers else in_channels
    return nn.Sequential(*layers), channels
