"""Counts, without measuring, the peak memory of a student's activations."""

import math
from typing import NamedTuple

from torch import nn

from efficientat_plugin.cost.tracing import Call, Trace, trace
from efficientat_plugin.students.blocks import InvertedResidual
from efficientat_plugin.students.dynamic import DynamicInvertedResidual

BLOCKS = (InvertedResidual, DynamicInvertedResidual)  # can be computed in slices


class PeakMemory(NamedTuple):
    """Bytes of activations during the most demanding operation, for one clip."""

    plain: int  # every operation computes all its channels at once
    efficient: int  # blocks compute one expanded channel at a time


def _buffers(traced: Trace) -> tuple[list[int], list[set[int]]]:
    """Returns the buffer of every value, and the buffers in use in every operation.

    A buffer has the number of the first value in it.
    """
    last_use = {0: 0}
    for index, operation in enumerate(traced.operations):
        last_use |= dict.fromkeys((*operation.read, *operation.written), index)
    last_use |= dict.fromkeys(traced.results, len(traced.operations))

    sizes = [math.prod(shape) for shape in traced.shapes]
    buffer_of = list(range(len(sizes)))
    alive = {0}
    occupied = []
    for index, operation in enumerate(traced.operations):
        ending = {value for value in operation.read if last_use[value] == index}
        for value in operation.written if operation.is_pointwise else ():
            # Where a block's result and its shortcut are added, overwrite the result,
            # which is the newer value.
            for other in sorted(ending, reverse=True):
                if sizes[other] == sizes[value]:
                    buffer_of[value] = buffer_of[other]
                    ending.remove(other)
                    break
        alive.update(operation.written)
        occupied.append({buffer_of[value] for value in alive})
        alive = {value for value in alive if last_use[value] > index}
    return buffer_of, occupied


def _sliced_peak(
    traced: Trace, call: Call, buffer_of: list[int], occupied: list[set[int]]
) -> int:
    """Counts the values in a block whose inner maps keep one channel at a time."""
    ends = {buffer_of[call.read], buffer_of[call.written]}
    sizes = {tuple(traced.shapes[value][2:]) for value in (call.read, call.written)}
    sizes |= {(math.prod(size),) for size in sizes}  # bands and frames flattened
    inner = {
        buffer_of[value]
        for operation in traced.operations[call.first : call.last]
        for value in operation.written
    } - ends

    def values(buffer: int) -> int:
        shape = traced.shapes[buffer]
        is_sliced = buffer in inner and len(shape) > 2 and shape[2:] in sizes
        return math.prod(shape[2:]) if is_sliced else math.prod(shape)

    return max(
        sum(map(values, buffers | ends)) for buffers in occupied[call.first : call.last]
    )


def peak_memory(
    student: nn.Module,
    n_mels: int = 128,
    n_frames: int = 1000,
    bytes_per_value: int = 4,
) -> PeakMemory:
    """Counts the peak memory of a clip's activations, for two ways of computing them.

    For every operation, the count includes its inputs, its outputs, and the values that
    later operations read: a shortcut, a gate, the kernel that a dynamic convolution has
    mixed for the clip. Pointwise operations (normalisation, activation, gating,
    addition) overwrite their input if nothing else needs it; views are free. Weights,
    and memory that a library needs inside an operation, are not counted.

    ``plain`` is the largest count. For ``efficient``, inverted residuals, including
    dynamic ones, are computed one expanded channel after the other: each is expanded,
    filtered depthwise and gated, and its share is added to the block's result, which is
    complete after the last channel. The count of a block then includes its whole input
    and its whole result, from start to end; one channel of every map between them; and
    gates, contexts and mixed kernels as above. If squeeze-excite first needs the means
    of the filtered maps, the channels are computed twice, once for the means, which
    costs time but no memory. A block that does not need less memory in slices is
    computed as a whole, and so is everything outside blocks.

    Source: Sandler et al., "MobileNetV2", CVPR 2018, section 5.1, equation 2 for
    ``plain`` and 3 for ``efficient`` with as many parts as channels; differs from it
    in that every expanded map is counted, not only the block's input and result.

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
    PeakMemory

    Raises
    ------
    ValueError
        If ``n_mels``, ``n_frames`` or ``bytes_per_value`` is less than 1.

    Example
    -------
    >>> peak_memory(nn.Conv2d(1, 8, 3, padding=1), n_mels=4, n_frames=5)
    PeakMemory(plain=720, efficient=720)
    """
    if bytes_per_value < 1:
        raise ValueError(
            f"bytes_per_value={bytes_per_value} must be 1 or more; give 4 for float32"
        )
    traced = trace(student, n_mels, n_frames, modules=BLOCKS)
    buffer_of, occupied = _buffers(traced)
    plain = [
        sum(math.prod(traced.shapes[buffer]) for buffer in buffers)
        for buffers in occupied
    ]
    efficient = plain.copy()
    for call in traced.calls:
        sliced = _sliced_peak(traced, call, buffer_of, occupied)
        for index in range(call.first, call.last):
            whole = max(plain[call.first : call.last])
            efficient[index] = min(sliced, whole)
    return PeakMemory(max(plain) * bytes_per_value, max(efficient) * bytes_per_value)
