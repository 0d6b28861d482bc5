"""Records the operations of a network on one clip, using only shapes.

The network runs on PyTorch's meta device with placeholders for its weights: nothing is
computed, no weight is copied, and the network is not changed. A network whose
operations depend on values has no single cost and cannot be traced. `complexity.py`,
`activation_memory.py` and `receptive_field.py` use the traces.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Pointwise operations that PyTorch does not mark as such
POINTWISE = ("hardswish", "native_batch_norm", "_native_batch_norm_legit_no_training")


class Window(NamedTuple):
    """The window of a convolution or pooling, over bands and frames."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]


class Operation(NamedTuple):
    """One operation; values are numbered in the order in which they appear."""

    name: str  # in ATen, such as "convolution"
    is_pointwise: bool  # may overwrite its input
    read: tuple[int, ...]  # values, without weights
    written: tuple[int, ...]
    window: Window | None = None  # of convolutions and poolings


class Call(NamedTuple):
    """One call of a module: operations ``first`` to ``last - 1``."""

    first: int
    last: int
    read: int  # value of the input
    written: int  # value of the output


class Trace(NamedTuple):
    """All operations of a network on one clip; value 0 is the clip."""

    shapes: tuple[tuple[int, ...], ...]  # of the values
    operations: tuple[Operation, ...]
    results: tuple[int, ...]  # values that the network returns
    calls: tuple[Call, ...]  # of the requested modules


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Sets evaluation mode without gradients, and restores every module's mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def silence(
    network: nn.Module, n_mels: int, n_frames: int, device: str | None = None
) -> Tensor:
    """Makes a silent clip on the network's or another device: [1, 1, F, T]."""
    if n_mels < 1 or n_frames < 1:
        raise ValueError(
            f"n_mels={n_mels} and n_frames={n_frames} must be 1 or more; the published "
            "students take 128 and, for ten seconds, 1000"
        )
    first = next(network.parameters(), torch.empty(()))
    return torch.zeros(
        1, 1, n_mels, n_frames, device=device or first.device, dtype=first.dtype
    )


def run_on_shapes(
    network: nn.Module, clip: Tensor, watched_by: AbstractContextManager[Any]
) -> Any:
    """Runs the network on a clip on the meta device, in evaluation mode."""
    named = [*network.named_parameters(), *network.named_buffers()]
    # Made before recording starts, since weights do not count as values.
    stand_ins = {name: torch.empty_like(each, device="meta") for name, each in named}
    with evaluating(network), watched_by:
        return torch.func.functional_call(network, stand_ins, (clip,))


class _Recorder(TorchDispatchMode):
    """Numbers values by their storage, so a view has the number of its base."""

    def __init__(self, clip: Tensor) -> None:
        super().__init__()
        self.numbers: dict[int, int] = {}
        self.shapes: list[tuple[int, ...]] = []
        self.operations: list[Operation] = []
        self.kept: list[Tensor] = []  # else addresses of freed storages would recur
        self.number_new(clip)

    def number_new(self, tensor: Tensor) -> int:
        self.numbers[tensor.untyped_storage()._cdata] = len(self.shapes)
        self.kept.append(tensor)
        self.shapes.append(tuple(tensor.shape))
        return len(self.shapes) - 1

    def numbers_of(self, tree: Any) -> list[int]:
        """Returns the values in lists, tuples and dicts of tensors, without weights."""
        storages = (
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves(tree)
            if isinstance(leaf, Tensor)
        )
        return [self.numbers[each] for each in storages if each in self.numbers]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        # The other results of a batch norm are statistics, which evaluation omits.
        leaves = tree_leaves(result[0] if "batch_norm" in name else result)
        written = [
            self.number_new(leaf)
            for leaf in leaves
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given
        ]
        if not func.is_view:
            if name == "convolution" and args[6]:
                name = "transposed_convolution"
            self.operations.append(
                Operation(
                    name,
                    torch.Tag.pointwise in func.tags or name in POINTWISE,
                    tuple(self.numbers_of((args, kwargs))),
                    tuple(written),
                    _window(name, args),
                )
            )
        return result


def _window(name: str, args: tuple[Any, ...]) -> Window | None:
    """Returns the window of an operation, from its ATen arguments."""
    if name == "convolution":
        _, weight, _, stride, _, dilation = args[:6]
        return Window(_pair(weight.shape[2:]), _pair(stride), _pair(dilation))
    if name.startswith(("avg_pool", "max_pool")):
        kernel = _pair(args[1])
        has_stride = len(args) > 2 and args[2]
        is_dilated = name.startswith("max_pool") and len(args) > 4
        return Window(
            kernel,
            _pair(args[2]) if has_stride else kernel,
            _pair(args[4]) if is_dilated else (1, 1),
        )
    return None


def _pair(numbers: Any) -> tuple[int, int]:
    """Returns the numbers for bands and frames; a single number is for frames."""
    bands, frames = (1, *numbers)[-2:]
    return bands, frames


def trace(
    network: nn.Module,
    n_mels: int,
    n_frames: int,
    modules: tuple[type[nn.Module], ...] = (),
) -> Trace:
    """Records all operations of a network on one clip, in order.

    Arguments
    ---------
    network : torch.nn.Module
        Takes [B, 1, F, T].
    n_mels : int
        F, at least 1.
    n_frames : int
        T, at least 1.
    modules : tuple of type
        Classes whose calls to record; maps are their first argument and result.

    Returns
    -------
    Trace

    Raises
    ------
    ValueError
        If ``n_mels`` or ``n_frames`` is less than 1.

    Example
    -------
    >>> layers = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU())
    >>> traced = trace(layers, n_mels=4, n_frames=5)
    >>> [(operation.name, operation.read) for operation in traced.operations]
    [('convolution', (0,)), ('relu', (1,))]
    >>> traced.shapes
    ((1, 1, 4, 5), (1, 8, 2, 3), (1, 8, 2, 3))
    """
    clip = silence(network, n_mels, n_frames, device="meta")
    recorder = _Recorder(clip)
    starts: list[int] = []
    calls: list[Call] = []

    def begin(module: nn.Module, args: Any) -> None:
        starts.append(len(recorder.operations))

    def end(module: nn.Module, args: Any, result: Any) -> None:
        read, written = recorder.numbers_of(args)[0], recorder.numbers_of(result)[0]
        calls.append(Call(starts.pop(), len(recorder.operations), read, written))

    hooks = []
    for part in network.modules():
        if isinstance(part, modules):
            hooks += [
                part.register_forward_pre_hook(begin),
                part.register_forward_hook(end),
            ]
    try:
        results = recorder.numbers_of(run_on_shapes(network, clip, recorder))
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(
        tuple(recorder.shapes), tuple(recorder.operations), tuple(results), tuple(calls)
    )
