"""The base class of students that score every frame, and how they score clips."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.contracts import FrameOutput
from efficientat_plugin.students.student import Student, check_choice, check_integer

FLOOR = 1e-7  # every frame has some weight in attention


class HeadLayers(NamedTuple):
    """The results of the two class layers for the frames."""

    strong: Tensor  # [B, T', K]
    weak: Tensor  # [B, T', K']


def attention_over_frames(scores: HeadLayers) -> Tensor:
    """Averages the strong probabilities, weighted by the weak layer: -> [B, K]

    The weights are the softmax of the weak layer over classes. The logit of the average
    is computed from logarithms, so it stays finite where probabilities round to 1.

    Source: the attention pooling of DCASE's baselines for sound event detection, as in
    PretrainedSED's code, which returns probabilities.

    Example
    -------
    >>> import torch
    >>> alike = torch.full((1, 5, 3), 2.0)
    >>> scored = attention_over_frames(HeadLayers(alike, torch.randn(1, 5, 3)))
    >>> torch.allclose(scored, alike[:, 0])
    True
    """
    weights = functional.log_softmax(scores.weak, 2).clamp(min=math.log(FLOOR))
    on = functional.logsigmoid(scores.strong) + weights
    off = functional.logsigmoid(-scores.strong) + weights
    return on.logsumexp(1) - off.logsumexp(1)


class Scored(NamedTuple):
    """What a head computes the score of a clip from."""

    frames: Tensor  # [B, T', D]
    strong: Tensor  # [B, T', K], their logits


def linear_head(scored: Scored, layer: nn.Module) -> Tensor:
    """Averages the weak layer over frames: -> [B, K']

    The layer is linear, so the mean is taken first.
    """
    return layer(scored.frames.mean(1))


def attention_head(scored: Scored, layer: nn.Module) -> Tensor:
    """Applies `attention_over_frames` to the weak layer: -> [B, K]"""
    return attention_over_frames(HeadLayers(scored.strong, layer(scored.frames)))


FRAME_HEADS: dict[str, Callable[[Scored, nn.Module], Tensor]] = {
    "linear": linear_head,
    "attention": attention_head,
}


class FrameStudent(Student):
    """Base class of students that score every frame.

    A subclass defines ``frames`` and calls ``add_heads`` after its other layers.

    Arguments
    ---------
    num_classes : int
        K, classes of the frames, at least 1.
    num_weak_classes : int or None
        K', classes of the clip; None: as many as ``num_classes``.
    head : str
        How clips are scored, one of `FRAME_HEADS`.

    Shape
    -----
    log_mel : [B, 1, F, T]
    strong : [B, K, T']
    weak : [B, K']
    embedding : [B, T', D]

    Raises
    ------
    ValueError
        For illegal options or inputs.
    """

    frame_stride = 4

    def __init__(
        self, num_classes: int, num_weak_classes: int | None, head: str
    ) -> None:
        super().__init__(num_classes)
        if num_weak_classes is None:
            num_weak_classes = num_classes
        check_integer("num_weak_classes", num_weak_classes)
        check_choice("head", head, FRAME_HEADS)
        if head == "attention" and num_weak_classes != num_classes:
            raise ValueError(
                f"head='attention' scores clips by the {num_classes} classes of the "
                f"frames, so num_weak_classes={num_weak_classes} is illegal; leave it "
                "out, or use head='linear'"
            )
        self.num_weak_classes, self.head = num_weak_classes, head

    def add_heads(self, channels: int) -> None:
        """Adds the class layers of frames and clip, for frames of D channels."""
        self.strong_head = nn.Linear(channels, self.num_classes)
        self.weak_head = nn.Linear(channels, self.num_weak_classes)

    def class_layer(self) -> nn.Linear:
        """Returns the linear layer that clips are scored by."""
        return self.weak_head

    def frames(self, log_mel: Tensor) -> Tensor:
        """Computes the input of the heads: [B, 1, F, T] -> [B, T', D]."""
        raise NotImplementedError

    def forward(self, log_mel: Tensor) -> FrameOutput:  # type: ignore[override]
        """Computes logits of frames and clip, and what they are computed from."""
        self.check_input(log_mel)
        frames = self.frames(log_mel)  # [B, T', D]
        strong = self.strong_head(frames)
        weak = FRAME_HEADS[self.head](Scored(frames, strong), self.weak_head)
        return FrameOutput(strong.transpose(1, 2), weak, frames)
