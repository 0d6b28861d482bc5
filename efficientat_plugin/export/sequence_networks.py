"""Converts sequence models to graphs: [B, T', C] -> [B, T', D].

What sums over many values is computed in float32 in every precision: norms, angles and
scans. Support for a new layer is a function registered with ``add_layer``.
"""

from functools import singledispatch

import numpy as np
from numpy.typing import NDArray
from torch import nn

from efficientat_plugin.export.graph import TO_THE_END, Graph
from efficientat_plugin.export.networks import values_of
from efficientat_plugin.students.sequence.attention import (
    FeedForward,
    GatedAttention,
    RotaryPositions,
    Transformer,
)
from efficientat_plugin.students.sequence.convolution import (
    CausalConvolution,
    TemporalBlock,
    TemporalConvNet,
)
from efficientat_plugin.students.sequence.layers import ResidualStack, RMSNorm
from efficientat_plugin.students.sequence.recurrent import (
    HEADS,
    BidirectionalGRU,
    BidirectionalMinGRU,
    Hybrid,
    HybridAttention,
    MinGRU,
)

SMALLEST_NORM = 1e-12  # of `torch.nn.functional.normalize`
SCAN_STEPS = 13  # each doubles the frames that a state of a minGRU reaches back
MAX_SCANNED = 2**SCAN_STEPS  # frames, 5 minutes
Array = NDArray[np.float64]


@singledispatch
def add_layer(layer: nn.Module, graph: Graph, frames: str, name: str) -> str:
    """Adds a layer and returns its output."""
    raise ValueError(
        f"{name} is a {type(layer).__name__}, which cannot be exported; register a "
        "conversion with add_layer"
    )


@add_layer.register
def _sequential(layer: nn.Sequential, graph: Graph, frames: str, name: str) -> str:
    for number, part in enumerate(layer):
        frames = add_layer(part, graph, frames, f"{name}.{number}")
    return frames


@add_layer.register(nn.Identity)
@add_layer.register(nn.Dropout)
def _nothing(layer: nn.Module, graph: Graph, frames: str, name: str) -> str:
    return frames


@add_layer.register
def _linear(layer: nn.Linear, graph: Graph, frames: str, name: str) -> str:
    bias = None if layer.bias is None else values_of(layer.bias)
    return graph.linear(frames, values_of(layer.weight), bias, name)


@add_layer.register
def _gelu(layer: nn.GELU, graph: Graph, frames: str, name: str) -> str:
    return gelu(graph, frames)


def gelu(graph: Graph, value: str) -> str:
    """Adds the exact GELU; ONNX has an operator only from opset 20 on."""
    error = graph.op("Erf", graph.op("Mul", value, graph.numbers(0.5**0.5)))
    half = graph.op("Mul", value, graph.numbers(0.5))
    return graph.op("Mul", half, graph.op("Add", error, graph.numbers(1.0)))


@add_layer.register
def _rms_norm(layer: RMSNorm, graph: Graph, frames: str, name: str) -> str:
    wide = graph.in_float32(frames)
    norm = graph.op("ReduceL2", wide, graph.integers(-1), keepdims=1)
    norm = graph.op("Max", norm, graph.constant(np.float32(SMALLEST_NORM)))
    gain = values_of(layer.gamma) * layer.gamma.numel() ** 0.5
    scaled = graph.op("Div", wide, norm)
    scaled = graph.op("Mul", scaled, graph.constant(gain.astype(np.float32)))
    return graph.in_precision(scaled)


@add_layer.register
def _residual_stack(layer: ResidualStack, graph: Graph, frames: str, name: str) -> str:
    for number, part in enumerate(layer.layers):
        result = add_layer(part, graph, frames, f"{name}.layers.{number}")
        frames = graph.op("Add", frames, result)
    return frames


# --- Attention ------------------------------------------------------------------


def attention(
    graph: Graph,
    frames: str,
    weight: Array,
    bias: Array | None,
    heads: int,
    name: str,
    positions: RotaryPositions | None = None,
) -> str:
    """Adds attention of all frames to each other: [B, T', D] -> [B, heads, T', d].

    Arguments
    ---------
    graph : Graph
    frames : str
    weight : NDArray
        [3 D, D], of queries, keys and values.
    bias : NDArray or None
        [3 D]
    heads : int
    name : str
    positions : RotaryPositions or None
        Turns pairs of channels of queries and keys.

    Returns
    -------
    str
    """
    of_head = len(weight) // 3 // heads
    scale = of_head**-0.5
    order = np.arange(of_head)
    if positions is not None:  # the first of each pair, then the second
        order = np.concatenate([order[::2], order[1::2]])
    parts = []
    for number, part in enumerate("qkv"):
        rows = np.arange(len(weight)).reshape(3, heads, of_head)[number]
        rows = rows[:, order].reshape(-1) if part != "v" else rows.reshape(-1)
        factor = scale if part == "q" else 1.0
        value = graph.linear(
            frames,
            weight[rows] * factor,
            None if bias is None else bias[rows] * factor,
            f"{name}.{part}",
        )
        value = graph.reshape(value, 0, 0, heads, of_head)
        # Keys are transposed: [B, heads, d, T']
        perm = [0, 2, 3, 1] if part == "k" and positions is None else [0, 2, 1, 3]
        parts.append(graph.op("Transpose", value, perm=perm))
    query, key, value = parts
    if positions is not None:
        turn = _Turn(graph, frames, positions)
        query = turn.add(query, of_head)
        key = graph.op("Transpose", turn.add(key, of_head), perm=[0, 1, 3, 2])
    shares = graph.op("Softmax", graph.op("MatMul", query, key), axis=-1)
    return graph.op("MatMul", shares, value)


class _Turn:
    """Turns pairs of channels by the angles of their frames."""

    def __init__(self, graph: Graph, frames: str, positions: RotaryPositions) -> None:
        self.graph = graph
        num_frames = graph.op("Shape", frames, start=1, end=2)
        zero, one = (graph.constant(np.int64(number)) for number in (0, 1))
        num_frames = graph.op("Squeeze", num_frames)
        numbers = graph.op("Range", zero, num_frames, one)
        numbers = graph.in_float32(numbers, is_integer=True)
        numbers = graph.op("Unsqueeze", numbers, graph.integers(1))  # [T', 1]
        frequencies = values_of(positions.freqs).astype(np.float32)
        angles = graph.op("Mul", numbers, graph.constant(frequencies))
        self.cosine = graph.in_precision(graph.op("Cos", angles))  # [T', d / 2]
        self.sine = graph.in_precision(graph.op("Sin", angles))

    def add(self, value: str, of_head: int) -> str:
        """[B, heads, T', d], the first channels of all pairs before the second."""
        graph = self.graph
        first = graph.cut(value, 0, of_head // 2, axis=3)
        second = graph.cut(value, of_head // 2, TO_THE_END, axis=3)

        def product(one: str, other: str) -> str:
            return graph.op("Mul", one, other)

        turned = [
            graph.op("Sub", product(first, self.cosine), product(second, self.sine)),
            graph.op("Add", product(second, self.cosine), product(first, self.sine)),
        ]
        return graph.op("Concat", *turned, axis=3)


def merged_heads(graph: Graph, value: str, channels: int) -> str:
    """[B, heads, T', d] -> [B, T', heads * d]"""
    value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
    return graph.reshape(value, 0, 0, channels)


@add_layer.register
def _gated_attention(
    layer: GatedAttention, graph: Graph, frames: str, name: str
) -> str:
    normed = add_layer(layer.norm, graph, frames, f"{name}.norm")
    weight = values_of(layer.to_qkv.weight)
    attended = attention(
        graph, normed, weight, None, layer.heads, f"{name}.to_qkv", layer.pos_encoding
    )
    gates = add_layer(layer.to_gates, graph, normed, f"{name}.to_gates")
    gates = graph.op("Transpose", graph.op("Sigmoid", gates), perm=[0, 2, 1])
    gates = graph.op("Unsqueeze", gates, graph.integers(3))  # [B, heads, T', 1]
    merged = merged_heads(graph, graph.op("Mul", attended, gates), weight.shape[1])
    return add_layer(layer.to_out, graph, merged, f"{name}.to_out")


@add_layer.register
def _feed_forward(layer: FeedForward, graph: Graph, frames: str, name: str) -> str:
    return add_layer(layer.net, graph, frames, f"{name}.net")


@add_layer.register
def _transformer(layer: Transformer, graph: Graph, frames: str, name: str) -> str:
    for number, block in enumerate(layer.layers):
        assert isinstance(block, nn.ModuleList)
        for place, part in enumerate(block):
            label = f"{name}.layers.{number}.{place}"
            frames = graph.op("Add", frames, add_layer(part, graph, frames, label))
    return add_layer(layer.norm, graph, frames, f"{name}.norm")


# --- Convolutions ---------------------------------------------------------------


@add_layer.register
def _temporal(layer: TemporalConvNet, graph: Graph, frames: str, name: str) -> str:
    value = graph.op("Transpose", frames, perm=[0, 2, 1])  # [B, D, T']
    for number, block in enumerate(layer.network):
        assert isinstance(block, TemporalBlock)
        inner, label = value, f"{name}.network.{number}"
        for place, conv in enumerate((block.conv1, block.conv2), 1):
            inner = _causal(graph, inner, conv, f"{label}.conv{place}")
        value = graph.op("Relu", graph.op("Add", inner, value))
    return graph.op("Transpose", value, perm=[0, 2, 1])


def _causal(graph: Graph, value: str, conv: CausalConvolution, name: str) -> str:
    direction = values_of(conv.weight_v)
    length = np.linalg.norm(direction.reshape(len(direction), -1), axis=1)
    weight = direction * (values_of(conv.weight_g) / length[:, None, None])
    assert conv.bias is not None
    result = graph.op(
        "Conv",
        value,
        graph.weight(weight, f"{name}.weight"),
        graph.numbers(values_of(conv.bias), f"{name}.bias"),
        name=name,
        kernel_shape=[weight.shape[2]],
        dilations=[conv.dilation],
        pads=[(weight.shape[2] - 1) * conv.dilation, 0],
    )
    return graph.op("Relu", result)


# --- Recurrent models -----------------------------------------------------------


@add_layer.register
def _gru(layer: BidirectionalGRU, graph: Graph, frames: str, name: str) -> str:
    """Adds GRUs in float32: ONNX Runtime 1.31 crashes on those in float16."""
    hidden = layer.gru.hidden_size
    value = graph.in_float32(frames)
    value = graph.op("Transpose", value, perm=[1, 0, 2])  # [T', B, C]
    for number in range(layer.gru.num_layers):

        def both(kind: str, number: int = number) -> Array:
            """Weights of both directions; ONNX has the gates z, r, h, torch r, z, h."""
            found = []
            for suffix in ("", "_reverse"):
                weight = values_of(getattr(layer.gru, f"{kind}_l{number}{suffix}"))
                reset, update, new = np.split(weight, 3)
                found.append(np.concatenate([update, reset, new]))
            return np.stack(found)

        def weight(kind: str, number: int = number) -> str:
            found = both(kind, number)
            rows = found.reshape(-1, found.shape[2])
            stored = graph.weight(rows, f"{name}.gru.{kind}_l{number}")
            return graph.reshape(graph.in_float32(stored), *found.shape)

        bias = np.concatenate([both("bias_ih"), both("bias_hh")], axis=1)
        value = graph.op(
            "GRU",
            value,
            weight("weight_ih"),
            weight("weight_hh"),
            graph.in_float32(graph.numbers(bias)),
            name=f"{name}.gru.{number}",
            hidden_size=hidden,
            direction="bidirectional",
            linear_before_reset=1,
        )  # [T', 2, B, D / 2]
        value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
        value = graph.reshape(value, 0, 0, 2 * hidden)
    return graph.in_precision(graph.op("Transpose", value, perm=[1, 0, 2]))


@add_layer.register
def _hybrid(layer: Hybrid, graph: Graph, frames: str, name: str) -> str:
    for number, block in enumerate(layer.layers):
        assert isinstance(block, nn.ModuleList)
        for place in (0, 2):  # a norm, then what it is for
            inner, label = frames, f"{name}.layers.{number}"
            for part in (place, place + 1):
                inner = add_layer(block[part], graph, inner, f"{label}.{part}")
            frames = graph.op("Add", frames, inner)
    return add_layer(layer.norm, graph, frames, f"{name}.norm")


@add_layer.register
def _hybrid_attention(
    layer: HybridAttention, graph: Graph, frames: str, name: str
) -> str:
    weight = values_of(layer.to_qkv.weight)
    channels = weight.shape[1]
    attended = attention(graph, frames, weight, None, HEADS, f"{name}.to_qkv")
    attended = add_layer(layer.attn_out_norm, graph, attended, f"{name}.attn_out_norm")
    states = add_layer(layer.rnn, graph, frames, f"{name}.rnn")
    states = graph.reshape(states, 0, 0, HEADS, channels // HEADS)
    states = graph.op("Transpose", states, perm=[0, 2, 1, 3])
    states = add_layer(layer.rnn_out_norm, graph, states, f"{name}.rnn_out_norm")
    both = graph.op("Mul", graph.op("Add", states, attended), graph.numbers(0.5))
    merged = merged_heads(graph, both, channels)
    return add_layer(layer.to_out, graph, merged, f"{name}.to_out")


@add_layer.register
def _min_grus(layer: BidirectionalMinGRU, graph: Graph, frames: str, name: str) -> str:
    onward = _min_gru(layer.forward_minGRU, graph, frames, f"{name}.onward", False)
    backward = _min_gru(layer.backward_minGRU, graph, frames, f"{name}.backward", True)
    states = graph.op("Concat", onward, backward, axis=2)
    return add_layer(layer.to_out, graph, states, f"{name}.to_out")


def _min_gru(
    layer: MinGRU, graph: Graph, frames: str, name: str, is_backward: bool
) -> str:
    """Runs a minGRU from the first frame to the last, or the other way.

    A state is ``kept * earlier state + new``, which two frames combine to one of the
    same form, so the frames that a state reaches back double in each step. All factors
    are from 0 to 1 and all terms positive, so float32 loses nothing, unlike sums of
    logarithms.

    Source: Hillis and Steele, "Data Parallel Algorithms", 1986.
    """
    weight = values_of(layer.to_hidden_and_gate.weight)
    candidates, gates = (
        graph.in_float32(graph.linear(frames, part, None, f"{name}.{number}"))
        for number, part in enumerate(np.split(weight, 2))
    )
    # x + 0.5 where x is positive, else sigmoid(x): the larger of the two
    shifted = graph.op("Add", candidates, graph.constant(np.float32(0.5)))
    values = graph.op("Max", shifted, graph.op("Sigmoid", candidates))
    state = graph.op("Mul", graph.op("Sigmoid", gates), values)
    kept = graph.op("Sigmoid", graph.op("Neg", gates))
    for step in range(SCAN_STEPS):
        earlier = _moved(graph, state, 2**step, is_backward)
        state = graph.op("Add", state, graph.op("Mul", kept, earlier))
        if step < SCAN_STEPS - 1:
            before = _moved(graph, kept, 2**step, is_backward)
            kept = graph.op("Mul", kept, before)
    return graph.in_precision(state)


def _moved(graph: Graph, value: str, distance: int, is_backward: bool) -> str:
    """Moves [B, T', D] to later frames, or to earlier ones, and fills with zeros."""
    if is_backward:
        padded = graph.op("Pad", value, graph.integers(0, 0, 0, 0, distance, 0))
        return graph.cut(padded, distance, TO_THE_END, axis=1)
    padded = graph.op("Pad", value, graph.integers(0, distance, 0, 0, 0, 0))
    return graph.cut(padded, 0, -distance, axis=1)
