"""The base class of students, and the checks of their options."""

import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from efficientat_plugin.contracts import StudentOutput


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuses an option that is not one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        legal = ", ".join(map(repr, choices))
        raise ValueError(f"{name}={value!r} is not known; choose one of {legal}")


def check_integer(
    name: str, value: object, at_least: int = 1, at_most: float = math.inf
) -> None:
    """Refuses an option that is not an integer from ``at_least`` to ``at_most``."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or not at_least <= int(value) <= at_most:  # type: ignore[call-overload]
        legal = f"of at least {at_least}"
        if at_most < math.inf:
            legal = f"from {at_least} to {at_most}"
        raise ValueError(f"{name}={value!r} is illegal; give an integer {legal}")


def check_positive(name: str, value: object) -> None:
    """Refuses an option that is not a positive finite number."""
    if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise ValueError(f"{name}={value!r} is illegal; give a number greater than 0")


def check_mobile_options(width: object, strides: Sequence[int], dropout: float) -> None:
    """Refuses options that no MobileNet can be built with."""
    check_positive("width", width)
    if len(strides) != 4 or any(stride not in (1, 2) for stride in strides):
        raise ValueError(
            f"strides={strides!r} is illegal; give four numbers, each 1 or 2"
        )
    if not 0 <= dropout < 1:
        raise ValueError(
            f"dropout={dropout!r} is illegal; give a probability in [0, 1)"
        )


class Student(nn.Module):
    """Base class of students.

    A subclass defines ``maps`` and ``classifier``, or its own ``forward``.

    Arguments
    ---------
    num_classes : int
        K, at least 1.

    Shape
    -----
    log_mel : [B, 1, F, T]
    logits : [B, num_classes]
    embedding : [B, D]

    Raises
    ------
    ValueError
        For illegal options or inputs.
    """

    classifier: nn.Module
    min_frames = 1  # T of the shortest legal clip
    # Log-mel frames to each frame that is scored; None: only the clip is scored
    frame_stride: int | None = None
    front_end: dict[str, Any]  # arguments of LogMel, set if they are known
    options: dict[str, Any]  # the arguments that the student was built with

    def __new__(cls, *args: Any, **kwargs: Any) -> "Student":
        """Keeps the arguments, which are written to a model folder."""
        student = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs)
        student.options = dict([*given.arguments.items()][1:])
        return student

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        check_integer("num_classes", num_classes)
        self.num_classes = num_classes

    def describe(self) -> str:
        """Describes the student in a few words."""
        return type(self).__name__

    def maps(self, log_mel: Tensor) -> Tensor:
        """Computes the input of the head: [B, 1, F, T] -> [B, D, F', T']."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """Returns stem (0), blocks (1 to 15) and last convolution (16).

        The numbers are those of the published code.

        Raises
        ------
        ValueError
            If the student is built of other layers.
        """
        raise ValueError(
            f"a {type(self).__name__} has no stages of convolutions; give an MN or a "
            "DyMN"
        )

    def class_layer(self) -> nn.Linear:
        """Returns the linear layer at the end of the head.

        Raises
        ------
        ValueError
            If the head does not end in a linear layer.
        """
        head = self.classifier
        last = [*head.children()][-1]
        if not (isinstance(head, nn.Sequential) and isinstance(last, nn.Linear)):
            raise ValueError(
                f"a {type(head).__name__} head has no linear class layer at its end; "
                "build the student with head='mlp' or 'linear'"
            )
        return last

    def check_input(self, log_mel: Tensor) -> None:
        """Refuses an input that is not a batch of log-mels."""
        if log_mel.ndim != 4 or log_mel.shape[1] != 1:
            raise ValueError(
                f"log_mel has shape {tuple(log_mel.shape)}, but a student takes "
                "[B, 1, F, T]; from [B, F, T] use log_mel.unsqueeze(1)"
            )
        if 0 in log_mel.shape:
            raise ValueError(
                f"log_mel has shape {tuple(log_mel.shape)}; a student needs at least "
                "one clip, one band and one frame"
            )

    def forward(self, log_mel: Tensor) -> StudentOutput:
        """Computes logits and embeddings: [B, 1, F, T] -> [B, K], [B, D]."""
        self.check_input(log_mel)
        maps = self.maps(log_mel)
        return StudentOutput(self.classifier(maps), maps.mean((2, 3)))
