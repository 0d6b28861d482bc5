"""Computes the cost of a student: parameters, multiply-accumulates, memory, time."""

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from efficientat_plugin.students.dynamic import DynamicConv
from efficientat_plugin.students.student import Student

if TYPE_CHECKING:
    from efficientat_plugin.features import LogMel


class ReceptiveField(NamedTuple):
    """The part of the log-mel that a cell of the last maps depends on.

    It has as many mel bands as mel frames, since all windows are square.
    """

    size: int  # mel bands, and mel frames
    step: int = 1  # mel bands or mel frames from cell to cell

    def milliseconds(self, log_mel: "LogMel") -> float:
        """Computes the length in ms: hops between the frames, and the last window.

        Arguments
        ---------
        log_mel : LogMel
            The student's front end. The one sample before it, which pre-emphasis uses,
            is not counted.

        Returns
        -------
        float

        Example
        -------
        >>> from efficientat_plugin.features import LogMel
        >>> ReceptiveField(size=3).milliseconds(LogMel())
        45.0
        """
        samples = (self.size - 1) * log_mel.hop_length + log_mel.win_length
        return 1000 * samples / log_mel.sample_rate


class Complexity(NamedTuple):
    """The size of a student, and its cost for one clip."""

    parameters: int
    macs: int
    milliseconds_per_clip: float
    state_values: int  # parameters and statistics
    peak_memory: int  # bytes
    receptive_field: ReceptiveField | None  # None: not built of convolutions alone

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
        >>> print(Complexity(80, 1600, 0.0625, 90, 720, ReceptiveField(7)))
        trainable parameters:          80
        with statistics:               90
        multiply-accumulates:          0.002 M per clip
        peak memory:                   0.001 MB
        receptive field, time:         7 mel frames
        receptive field, frequency:    7 mel bands
        latency:                       0.06 ms per clip
        """
        figures = {
            "trainable parameters": f"{self.parameters:,}",
            "with statistics": f"{self.state_values:,}",
            "multiply-accumulates": f"{self.macs / 1e6:,.3f} M per clip",
            "peak memory": f"{self.peak_memory / 1e6:.3f} MB",
        }
        if field := self.receptive_field:
            length = f"{field.size} mel frames"
            if log_mel is not None:
                length += f", {field.milliseconds(log_mel):g} ms"
            figures["receptive field, time"] = length
            figures["receptive field, frequency"] = f"{field.size} mel bands"
        figures["latency"] = f"{self.milliseconds_per_clip:.2f} ms per clip"
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
    additions = 0

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
    return _walk(student, n_mels, n_frames)[0]


def peak_memory(
    student: nn.Module,
    n_mels: int = 128,
    n_frames: int = 1000,
    bytes_per_value: int = 4,
) -> int:
    """Computes the memory in bytes of a clip's activations at the most demanding layer.

    For each convolution and each linear layer, the count includes its input, its
    output, and the shortcuts of the inverted residuals around it. Normalisation,
    activation, gating and addition overwrite their input. Weights, gates, kernels mixed
    for the clip, and memory that a library needs inside a layer are not counted. Only
    shapes are computed.

    Source: Sandler et al., "MobileNetV2", CVPR 2018, section 5.1, equation 2.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1.
    bytes_per_value : int
        4 for float32, 2 for float16, 1 for int8; at least 1.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If ``n_mels``, ``n_frames`` or ``bytes_per_value`` is less than 1.

    Example
    -------
    >>> peak_memory(nn.Conv2d(1, 8, 3, padding=1), n_mels=4, n_frames=5)
    720
    """
    _refuse_no_bytes(bytes_per_value)
    return _walk(student, n_mels, n_frames)[1] * bytes_per_value


def receptive_field(student: Student) -> ReceptiveField:
    """Computes the receptive field of the last maps, through the convolutions alone.

    Squeeze-excite and the context of dynamic blocks are left out, since they make every
    cell depend on the whole clip, if only through a few numbers. The field is not cut
    to the size of the clip: it may have more bands than the log-mel.

    Source: Araujo et al., "Computing Receptive Fields of Convolutional Neural
    Networks", Distill 2019, equation 2.

    Arguments
    ---------
    student : Student

    Returns
    -------
    ReceptiveField

    Raises
    ------
    ValueError
        If the student has no stages of convolutions.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> receptive_field(MN(width=0.1))
    ReceptiveField(size=595, step=32)
    """
    size, step = 1, 1
    for stage in student.stages():
        for part in stage.modules():
            if isinstance(part, DynamicConv):
                kernel, stride, dilation = part.kernel, part.stride, part.dilation
            elif isinstance(part, nn.Conv2d):
                kernel, stride, dilation = (
                    numbers[0]
                    for numbers in (part.kernel_size, part.stride, part.dilation)
                )
            else:
                continue
            size += dilation * (kernel - 1) * step
            step *= stride
    return ReceptiveField(size, step)


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
    clip = _silence(student, n_mels, n_frames)
    if clip.is_meta:
        raise ValueError(
            "the student is on the meta device, where nothing is computed; build it "
            'without torch.device("meta")'
        )
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
    student: nn.Module,
    n_mels: int = 128,
    n_frames: int = 1000,
    rounds: int = 20,
    bytes_per_value: int = 4,
) -> Complexity:
    """Computes all figures of a student.

    See `count_parameters`, `count_state`, `count_macs`, `peak_memory`,
    `receptive_field` and `measure_latency`. A network without stages of convolutions,
    such as a transformer, whose attention covers the whole clip, has no receptive
    field; the memory for attention weights is not counted.

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
    _refuse_no_bytes(bytes_per_value)
    macs, most_values = _walk(student, n_mels, n_frames)
    return Complexity(
        count_parameters(student),
        macs,
        measure_latency(student, n_mels, n_frames, rounds),
        count_state(student),
        most_values * bytes_per_value,
        _field_if_any(student),
    )


_measured: WeakKeyDictionary[nn.Module, dict[tuple, Complexity]] = WeakKeyDictionary()


def measure_once(
    student: nn.Module, n_mels: int = 128, n_frames: int = 1000
) -> Complexity:
    """Returns what `measure` does, which it asks once for a student of this shape.

    Training changes none of the figures but the number of trainable parameters, which
    is counted anew. So all tables and cards of a run state one latency.

    Arguments
    ---------
    student : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1.

    Returns
    -------
    Complexity

    Raises
    ------
    ValueError
        As for `measure`.

    Example
    -------
    >>> conv = torch.nn.Conv2d(1, 8, 3, padding=1)
    >>> measure_once(conv, n_mels=4, n_frames=5) == measure_once(conv, 4, 5)
    True
    """
    device = next((each.device for each in student.parameters()), None)
    state = count_state(student), device, torch.get_num_threads()
    known = _measured.setdefault(student, {})
    key = (n_mels, n_frames, *state)
    if key not in known:
        known[key] = measure(student, n_mels, n_frames)
    return known[key]._replace(parameters=count_parameters(student))


def _refuse_no_bytes(bytes_per_value: int) -> None:
    if bytes_per_value < 1:
        raise ValueError(
            f"bytes_per_value={bytes_per_value} must be 1 or more; give 4 for float32"
        )


def _walk(student: nn.Module, n_mels: int, n_frames: int) -> tuple[int, int]:
    """Computes the shapes of one clip: multiply-accumulates, most values at a layer."""
    # Imported here, since it imports the compiler Triton, which tagging does not need.
    from torch.utils.flop_counter import FlopCounterMode

    most = 0
    shortcuts: list[Tensor] = []

    def begin_block(block: nn.Module, args: tuple[Tensor, ...]) -> None:
        shortcuts.append(args[0])

    def end_block(block: nn.Module, args: Any, result: Tensor) -> None:
        shortcuts.pop()

    def end_layer(layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal most
        held = {id(each): each.numel() for each in (args[0], result, *shortcuts)}
        most = max(most, sum(held.values()))

    student = _shapes_of(student)
    for part in student.modules():
        if getattr(part, "has_residual", False):
            part.register_forward_pre_hook(begin_block)
            part.register_forward_hook(end_block)
        if isinstance(part, nn.Conv2d | nn.Linear | DynamicConv):
            part.register_forward_hook(end_layer)
    clip = _silence(student, n_mels, n_frames)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        _Biases() as biases,
    ):
        student(clip)
    # A multiply-accumulate is two floating-point operations.
    return counter.get_total_flops() // 2 + biases.additions, most


def _field_if_any(student: nn.Module) -> ReceptiveField | None:
    """Returns the receptive field of a student that has stages of convolutions."""
    if isinstance(student, Student) and type(student).stages != Student.stages:
        return receptive_field(student)
    return None


def _shapes_of(student: nn.Module) -> nn.Module:
    """Copies a student to the meta device, in evaluation mode; no number is copied."""
    tensors = [*student.parameters(), *student.buffers()]
    stand_ins = {id(each): torch.empty_like(each, device="meta") for each in tensors}
    return copy.deepcopy(student, stand_ins).eval()


def _silence(student: nn.Module, n_mels: int, n_frames: int) -> Tensor:
    """Makes a silent clip on the student's device: [1, 1, F, T]."""
    if n_mels < 1 or n_frames < 1:
        raise ValueError(
            f"n_mels={n_mels} and n_frames={n_frames} must be 1 or more; the published "
            "students take 128 and, for ten seconds, 1000"
        )
    first = next(student.parameters(), torch.empty(()))
    return first.new_zeros(1, 1, n_mels, n_frames)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Sets evaluation mode without gradients, and restores every module's mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
