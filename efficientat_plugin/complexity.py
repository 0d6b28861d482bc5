"""What a student costs: parameters, multiply-accumulates and time."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """What one clip costs."""

    parameters: int
    macs: int
    milliseconds_per_clip: float


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every part's mode comes back after it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _silence(student: nn.Module, n_mels: int, n_frames: int) -> Tensor:
    """One clip where the student is: [1, 1, n_mels, n_frames]."""
    if n_mels < 1 or n_frames < 1:
        raise ValueError(f"n_mels={n_mels} and n_frames={n_frames} must be 1 or more")
    first = next(student.parameters())
    return torch.zeros(1, 1, n_mels, n_frames, device=first.device, dtype=first.dtype)


def count_parameters(module: nn.Module) -> int:
    """Parameters that training changes.

    Arguments
    ---------
    module : torch.nn.Module

    Returns
    -------
    int

    Example
    -------
    >>> count_parameters(torch.nn.Linear(3, 2))
    8
    """
    return sum(part.numel() for part in module.parameters() if part.requires_grad)


def count_macs(student: nn.Module, n_mels: int = 128, n_frames: int = 1000) -> int:
    """Multiply-accumulates of one clip: convolutions and matrix products.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1; 1000 are ten seconds at a hop of 10 ms.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        For a clip without bands or frames.

    Example
    -------
    >>> count_macs(torch.nn.Conv2d(1, 8, 3, padding=1), n_mels=4, n_frames=5)
    1440
    """
    clip = _silence(student, n_mels, n_frames)
    with _evaluating(student), FlopCounterMode(display=False) as counter:
        student(clip)
    return counter.get_total_flops() // 2  # a multiplication and an addition


def measure_latency(
    student: nn.Module, n_mels: int = 128, n_frames: int = 1000, rounds: int = 20
) -> float:
    """Median time for one clip by itself, in milliseconds, on the student's device.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1.
    rounds : int
        Timed runs, at least 1; three more go before them, untimed.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        For a clip without bands or frames, or no rounds.

    Example
    -------
    >>> measure_latency(torch.nn.Conv2d(1, 8, 3), n_mels=4, n_frames=5) > 0
    True
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} times nothing; give 1 or more")
    clip = _silence(student, n_mels, n_frames)
    is_cuda = clip.device.type == "cuda"
    seconds = []
    with _evaluating(student):
        for _ in range(3 + rounds):
            if is_cuda:
                torch.cuda.synchronize(clip.device)
            start = time.perf_counter()
            student(clip)
            if is_cuda:  # the call returns before the work is done
                torch.cuda.synchronize(clip.device)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[3:])


def measure(
    student: nn.Module, n_mels: int = 128, n_frames: int = 1000, rounds: int = 20
) -> Complexity:
    """All three at once; see `count_parameters`, `count_macs`, `measure_latency`.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1.
    rounds : int
        Timed runs, at least 1.

    Returns
    -------
    Complexity

    Example
    -------
    >>> measure(torch.nn.Conv2d(1, 8, 3, padding=1), n_mels=4, n_frames=5)[:2]
    (80, 1440)
    """
    return Complexity(
        count_parameters(student),
        count_macs(student, n_mels, n_frames),
        measure_latency(student, n_mels, n_frames, rounds),
    )
