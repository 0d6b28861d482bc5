"""What a student costs: parameters, multiply-accumulates, memory and time."""

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
    """What one clip costs."""

    parameters: int
    macs: int
    milliseconds_per_clip: float
    state_values: int  # parameters and statistics
    peak_memory: PeakMemory  # bytes
    receptive_field: ReceptiveField

    def describe(self, log_mel: "LogMel | None" = None) -> str:
        """One figure in a line, with its unit.

        Arguments
        ---------
        log_mel : LogMel or None
            The student's front end; tells how long the receptive field is in time.

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


def count_state(module: nn.Module) -> int:
    """Numbers in the state dict: parameters, statistics and other buffers.

    Single numbers are left out: batch norm's count of batches, which scoring does
    not read, and a `DyMN`'s temperature, which published state dicts do not have.
    The published sizes of DyMN are these counts, those of MN `count_parameters`.

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
    """Counts the biases that are added, whether a module adds them or a function.

    Some layers are not called but read: their weights go to ``functional.linear``.
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
    """Multiply-accumulates of one clip, as published.

    Products of convolutions and matrices count, squeeze-excite's and those that mix
    a dynamic convolution's kernels for the clip included, attention's of queries with
    keys and of weights with values, and one for every bias that a convolution or linear
    layer adds; normalisation, activations, softmax, gating, pooling and residuals are
    free. Nothing is computed but shapes.

    Source: the README of github.com/fschmid56/EfficientAT has the counts. Its digits
    would be the same without biases, and without the mixing of kernels.

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
    1600
    """
    # It imports the compiler Triton, which nobody needs who only hears sounds.
    from torch.utils.flop_counter import FlopCounterMode

    counter, biases = FlopCounterMode(display=False), _Biases()
    clip = silence(student, n_mels, n_frames, device="meta")
    with biases:
        run_on_shapes(student, clip, counter)
    # A product is a multiplication and an addition.
    return counter.get_total_flops() // 2 + biases.additions


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
        For a clip without bands or frames, no rounds, or a student without numbers.

    Example
    -------
    >>> measure_latency(torch.nn.Conv2d(1, 8, 3), n_mels=4, n_frames=5) > 0
    True
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} times nothing; give 1 or more")
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
    """All at once; see `count_parameters`, `count_state`, `count_macs`,
    `peak_memory`, `receptive_field` and `measure_latency`.

    A transformer's receptive field is a patch, since attention sees the whole clip; its
    peak memory has attention's weights, of which fused kernels hold only some.

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
        Of activations: 4 for float32; at least 1.

    Returns
    -------
    Complexity

    Raises
    ------
    ValueError
        As those functions do.

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
