"""The memory that a student's activations need at once, counted and not measured."""

import math
from typing import NamedTuple

from torch import nn

from efficientat_plugin.cost.tracing import Call, Trace, trace
from efficientat_plugin.students.blocks import InvertedResidual
from efficientat_plugin.students.dynamic import DynamicInvertedResidual

BLOCKS = (InvertedResidual, DynamicInvertedResidual)  # what can be done in slices


class PeakMemory(NamedTuple):
    """Bytes of activations during the most demanding operation, for one clip."""

    plain: int  # every operation gives all its channels
    efficient: int  # no expanded map is ever whole


def _buffers(traced: Trace) -> tuple[list[int], list[set[int]]]:
    """The buffer of every value, and those occupied during every operation.

    A buffer goes by the number of the first value in it.
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
            # Of a block's result and its shortcut the younger one: the result
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
    """Values at once in a block whose inner maps have one channel at a time."""
    ends = {buffer_of[call.read], buffer_of[call.written]}
    sizes = {tuple(traced.shapes[value][2:]) for value in (call.read, call.written)}
    sizes |= {(math.prod(size),) for size in sizes}  # bands and frames in one
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
    """The most that a clip's activations occupy at once, in two ways of computing.

    Counted for every operation is what it reads, what it writes, and what a later one
    will read: a shortcut, a gate, the kernel that a dynamic convolution mixed for the
    clip. Pointwise operations (normalisation, activation, gating, addition) write
    over what they read where nothing needs it again; views are free. The weights,
    and what a library needs inside an operation, do not count.

    ``plain`` is the largest count. For ``efficient``, the inverted residuals, dynamic
    ones included, are computed one expanded channel after the other: expanded,
    filtered depthwise, gated, and its share added to the block's result, whose
    channels are complete at the last. Counted there is the block's input and
    its result, whole and from beginning to end; of every map between them one
    channel; and gates, contexts and mixed kernels as above. Where squeeze-excite
    needs means of filtered maps first, the channels are computed twice, once for the
    means: that costs time, not memory. A block that needs no less in slices is
    computed whole, and so is everything outside blocks.

    Source: Sandler et al., "MobileNetV2", CVPR 2018, section 5.1, equation 2 for
    ``plain`` and 3 for ``efficient`` with as many parts as channels; differs from it
    in that every expanded map is counted, not only the block's ends.

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
        For a clip without bands or frames, or values without bytes.

    Example
    -------
    >>> peak_memory(nn.Conv2d(1, 8, 3, padding=1), n_mels=4, n_frames=5)
    PeakMemory(plain=720, efficient=720)
    """
    if bytes_per_value < 1:
        raise ValueError(
            f"bytes_per_value={bytes_per_value} must be 1 or more; float32 has 4"
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
