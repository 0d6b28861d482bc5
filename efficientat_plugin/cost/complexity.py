"""Computes the cost of a student: parameters, multiply-accumulates, memory, time."""

import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from efficientat_plugin.cost.activation_memory import PeakMemory, peak_memory
from efficientat_plugin.cost.receptive_field import ReceptiveField, receptive_field
from efficientat_plugin.cost.tracing import evaluating, run_on_shapes, silence

if TYPE_CHECKING:
    from efficientat_plugin.features import LogMel

__all__ = [
    "Complexity",
    "PeakMemory",
    "ReceptiveField",
    "count_macs",
    "count_parameters",
    "count_state",
    "measure",
    "measure_latency",
    "peak_memory",
    "receptive_field",
]


class Complexity(NamedTuple):
    """The size of a student, and its cost for one clip."""

    parameters: int
    macs: int
    milliseconds_per_clip: float
    state_values: int  # parameters and statistics
    peak_memory: PeakMemory  # bytes
    receptive_field: ReceptiveField

    def describe(self, log_mel: "LogMel | None" = None) -> str:
        """Lists the figures with their units, one per line.

        Arguments
        ---------
        log_mel : LogMel or None
            The student's front end, used to express the receptive field in ms.

        Returns
        -------
        str

        Example
        -------
        >>> field = ReceptiveField(bands=3, frames=7)
        >>> print(Complexity(80, 1600, 0.0625, 90, PeakMemory(800, 720), field))
        trainable parameters:          80
        with statistics:               90
        multiply-accumulates:          0.002 M per clip
        peak memory, plain:            0.001 MB
        peak memory, efficient:        0.001 MB
        receptive field, time:         7 mel frames
        receptive field, frequency:    3 mel bands
        latency:                       0.06 ms per clip
        """
        field = self.receptive_field
        length = f"{field.frames} mel frames"
        if log_mel is not None:
            length += f", {field.milliseconds(log_mel):g} ms"
        figures = {
            "trainable parameters": f"{self.parameters:,}",
            "with statistics": f"{self.state_values:,}",
            "multiply-accumulates": f"{self.macs / 1e6:,.3f} M per clip",
            "peak memory, plain": f"{self.peak_memory.plain / 1e6:.3f} MB",
            "peak memory, efficient": f"{self.peak_memory.efficient / 1e6:.3f} MB",
            "receptive field, time": length,
            "receptive field, frequency": f"{field.bands} mel bands",
            "latency": f"{self.milliseconds_per_clip:.2f} ms per clip",
        }
        return "\n".join(f"{name + ':':<31}{text}" for name, text in figures.items())

    def __str__(self) -> str:
        return self.describe()


def count_parameters(module: nn.Module) -> int:
    """Counts the trainable parameters.

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


def count_state(module: nn.Module) -> int:
    """Counts the numbers in the state dict: parameters, statistics, other buffers.

    Scalars are left out: the number of batches in batch norms, which inference does not
    use, and a `DyMN`'s temperature, which published state dicts do not have. The
    published sizes of DyMN are these counts, those of MN are `count_parameters`.

    Arguments
    ---------
    module : torch.nn.Module

    Returns
    -------
    int

    Example
    -------
    >>> count_state(torch.nn.BatchNorm2d(3))
    12
    """
    return sum(part.numel() for part in module.state_dict().values() if part.ndim)


class _Biases(TorchFunctionMode):
    """Counts additions of biases, whether by a module or a function.

    Some layers are never called, but their weights are passed to ``functional.linear``.
    """

    LAYERS = (functional.linear, functional.conv1d, functional.conv2d)

    def __init__(self) -> None:
        super().__init__()
        self.additions = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.LAYERS:
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            self.additions += 0 if bias is None else result.numel()
        return result


def count_macs(student: nn.Module, n_mels: int = 128, n_frames: int = 1000) -> int:
    """Counts the multiply-accumulates of one clip, as published.

    The count includes the products of convolutions and matrices: also those of
    squeeze-excite, those that mix the kernels of dynamic convolutions, and those of
    queries with keys and weights with values in attention. Every bias that a
    convolution or linear layer adds counts as one. Normalisation, activations, softmax,
    gating, pooling and residuals are free. Only shapes are computed.

    Source: the counts are in the README of github.com/fschmid56/EfficientAT. To the
    digits given there, biases and the mixing of kernels make no difference.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1; 1000 frames are ten seconds at a hop of 10 ms.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If ``n_mels`` or ``n_frames`` is less than 1.

    Example
    -------
    >>> count_macs(torch.nn.Conv2d(1, 8, 3, padding=1), n_mels=4, n_frames=5)
    1600
    """
    # Imported here, since it imports the compiler Triton, which tagging does not need.
    from torch.utils.flop_counter import FlopCounterMode

    counter, biases = FlopCounterMode(display=False), _Biases()
    clip = silence(student, n_mels, n_frames, device="meta")
    with biases:
        run_on_shapes(student, clip, counter)
    # A multiply-accumulate is two floating-point operations.
    return counter.get_total_flops() // 2 + biases.additions


def measure_latency(
    student: nn.Module, n_mels: int = 128, n_frames: int = 1000, rounds: int = 20
) -> float:
    """Measures the median time for one clip, in ms, on the student's device.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1.
    rounds : int
        Timed runs, at least 1, after three untimed ones.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If ``n_mels``, ``n_frames`` or ``rounds`` is less than 1, or the student is on
        the meta device.

    Example
    -------
    >>> measure_latency(torch.nn.Conv2d(1, 8, 3), n_mels=4, n_frames=5) > 0
    True
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} measures nothing; give 1 or more")
    clip = silence(student, n_mels, n_frames)
    if clip.is_meta:
        raise ValueError(
            "the student is on the meta device, where nothing is computed; build it "
            'without torch.device("meta")'
        )
    is_cuda = clip.device.type == "cuda"
    seconds = []
    with evaluating(student):
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
    student: nn.Module,
    n_mels: int = 128,
    n_frames: int = 1000,
    rounds: int = 20,
    bytes_per_value: int = 4,
) -> Complexity:
    """Computes all figures of a student.

    See `count_parameters`, `count_state`, `count_macs`, `peak_memory`,
    `receptive_field` and `measure_latency`. The receptive field of a transformer is
    given as one patch, although attention covers the whole clip; its peak memory
    includes all attention weights, of which fused kernels hold only a part.

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
    bytes_per_value : int
        Bytes per value of the activations: 4 for float32; at least 1.

    Returns
    -------
    Complexity

    Raises
    ------
    ValueError
        As for those functions.

    Example
    -------
    >>> measure(torch.nn.Conv2d(1, 8, 3, padding=1), n_mels=4, n_frames=5)[:2]
    (80, 1600)
    """
    return Complexity(
        count_parameters(student),
        count_macs(student, n_mels, n_frames),
        measure_latency(student, n_mels, n_frames, rounds),
        count_state(student),
        peak_memory(student, n_mels, n_frames, bytes_per_value),
        receptive_field(student, n_mels, n_frames),
    )
