"""Converts students that score every frame to graphs; see ``networks``."""

import math
from functools import singledispatch
from typing import NamedTuple

import numpy as np
from torch import nn

from efficientat_plugin.export.graph import Graph
from efficientat_plugin.export.networks import add_module, values_of
from efficientat_plugin.export.sequence_networks import (
    MAX_SCANNED,
    add_layer,
    attention,
    gelu,
    merged_heads,
)
from efficientat_plugin.students.frame_mn import FrameBackbone, FrameMN
from efficientat_plugin.students.frame_passt import (
    CHANNELS,
    FramePaSST,
    FrameTransformer,
)
from efficientat_plugin.students.frame_student import FLOOR, FrameStudent
from efficientat_plugin.students.passt import Block


class FrameValues(NamedTuple):
    """What the graph of a student of frames computes."""

    logits: str  # [B, K'], of the clip
    embedding: str  # [B, T', D]
    frame_logits: str  # [B, T', K]


def add_frame_student(graph: Graph, log_mel: str, student: FrameStudent) -> FrameValues:
    """Adds what a student that scores every frame computes in evaluation mode.

    Arguments
    ---------
    graph : Graph
    log_mel : str
        Value [B, F, T], in the network's precision.
    student : FrameStudent

    Returns
    -------
    FrameValues

    Raises
    ------
    ValueError
        For a student that cannot be exported to ONNX.
    """
    maps = graph.op("Unsqueeze", log_mel, graph.integers(1))  # [B, 1, F, T]
    frames = add_frames(student, graph, maps)
    strong = add_layer(student.strong_head, graph, frames, "strong_head")
    if student.head == "attention":
        weak = add_layer(student.weak_head, graph, frames, "weak_head")
        return FrameValues(_attention_over_frames(graph, strong, weak), frames, strong)
    # It is linear in the frames, so the mean can be taken first.
    mean = graph.mean(frames, 1)
    weak = add_layer(student.weak_head, graph, mean, "weak_head")
    return FrameValues(weak, frames, strong)


def most_frames(student: nn.Module) -> int | None:
    """Returns T of the longest log-mel that the graph of a student takes, if limited.

    Example
    -------
    >>> most_frames(FrameMN(3, width=0.1)), most_frames(FramePaSST(3, depth=1))
    (None, 1000)
    """
    if isinstance(student, FramePaSST):
        return student.num_frames
    if isinstance(student, FrameMN) and student.sequence_model == "hybrid":
        return student.frame_stride * MAX_SCANNED
    return None


@singledispatch
def add_frames(student: FrameStudent, graph: Graph, maps: str) -> str:
    """Adds a student's layers below the heads: [B, 1, F, T] -> [B, T', D]."""
    raise ValueError(
        f"a {type(student).__name__} cannot be exported; export a FrameMN or a "
        "FramePaSST"
    )


@add_frames.register
def _frame_mn(student: FrameMN, graph: Graph, maps: str) -> str:
    backbone = student.backbone
    assert isinstance(backbone, FrameBackbone)
    for number, stage in enumerate(backbone.features):
        maps = add_module(stage, graph, maps, f"features.{number}")
    frames = graph.op("Transpose", graph.mean(maps, 2), perm=[0, 2, 1])
    return add_layer(student.seq_model, graph, frames, "seq_model")


# --- FramePaSST -----------------------------------------------------------------


@add_frames.register
def _frame_passt(student: FramePaSST, graph: Graph, maps: str) -> str:
    body = student.model["fpasst"]
    assert isinstance(body, FrameTransformer)
    for number, conv in enumerate((body.conv_in_1, body.conv_in_2, body.conv_in_3), 1):
        maps = gelu(graph, _conv(graph, maps, conv, 1, f"conv_in_{number}"))
    maps = graph.reshape(maps, 0, CHANNELS[0], body.n_mels, -1)
    # The last frame's patch has a frame of zeros.
    patches = _conv(graph, maps, body.patch_embed.proj, None, "patch_embed")
    patches = graph.op("Squeeze", patches, graph.integers(2))  # [B, D, T']
    patches = graph.op("Transpose", patches, perm=[0, 2, 1])
    places = body.time_new_pos_embed + body.freq_new_pos_embed  # [1, D, 1, positions]
    table = graph.numbers(values_of(places)[:, :, 0].swapaxes(1, 2), "positions")
    num_frames = graph.op("Shape", patches, start=1, end=2)
    zero, one = graph.integers(0), graph.integers(1)
    table = graph.op("Slice", table, zero, num_frames, one)
    patches = graph.op("Add", patches, table)
    special = np.concatenate([values_of(body.cls_token), values_of(body.dist_token)], 1)
    special = special + values_of(body.new_pos_embed)  # [1, 2, D]
    batch = graph.op("Shape", patches, start=0, end=1)
    shape = graph.op("Concat", batch, graph.integers(*special.shape[1:]), axis=0)
    first = graph.op("Expand", graph.numbers(special, "special"), shape)
    tokens = graph.op("Concat", first, patches, axis=1)
    for number, block in enumerate(body.blocks):
        tokens = add_layer(block, graph, tokens, f"blocks.{number}")
    tokens = add_layer(body.norm, graph, tokens, "norm")
    return graph.cut(tokens, special.shape[1], 2**62, axis=1)


def _conv(
    graph: Graph, maps: str, conv: nn.Conv2d, padding: int | None, name: str
) -> str:
    """Adds a convolution, padded on all sides or, with None, by one frame behind."""
    assert conv.bias is not None
    return graph.op(
        "Conv",
        maps,
        graph.weight(values_of(conv.weight), f"{name}.weight"),
        graph.numbers(values_of(conv.bias), f"{name}.bias"),
        name=name,
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[0, 0, 0, 1] if padding is None else [padding] * 4,
    )


@add_layer.register
def _layer_norm(layer: nn.LayerNorm, graph: Graph, frames: str, name: str) -> str:
    gain = values_of(layer.weight).astype(np.float32)
    bias = values_of(layer.bias).astype(np.float32)
    normed = graph.op(
        "LayerNormalization",
        graph.in_float32(frames),
        graph.constant(gain, f"{name}.weight"),
        graph.constant(bias, f"{name}.bias"),
        axis=-1,
        epsilon=layer.eps,
    )
    return graph.in_precision(normed)


@add_layer.register
def _block(layer: Block, graph: Graph, frames: str, name: str) -> str:
    normed = add_layer(layer.norm1, graph, frames, f"{name}.norm1")
    attend = layer.attn
    weight, bias = values_of(attend.qkv.weight), values_of(attend.qkv.bias)
    label = f"{name}.attn"
    attended = attention(graph, normed, weight, bias, attend.num_heads, label)
    attended = merged_heads(graph, attended, weight.shape[1])
    attended = add_layer(attend.proj, graph, attended, f"{name}.attn.proj")
    frames = graph.op("Add", frames, attended)
    inner = add_layer(layer.norm2, graph, frames, f"{name}.norm2")
    inner = gelu(graph, add_layer(layer.mlp.fc1, graph, inner, f"{name}.mlp.fc1"))
    inner = add_layer(layer.mlp.fc2, graph, inner, f"{name}.mlp.fc2")
    return graph.op("Add", frames, inner)


# --- Attention over frames ------------------------------------------------------


def _attention_over_frames(graph: Graph, strong: str, weak: str) -> str:
    """Adds the head of this name: two [B, T', K] -> [B, K]."""
    strong, weak = graph.in_float32(strong), graph.in_float32(weak)
    weights = graph.op("LogSoftmax", weak, axis=2)
    weights = graph.op("Max", weights, graph.constant(np.float32(math.log(FLOOR))))

    def log_sum(scores: str) -> str:
        """Sums exponentials; the largest is 1, so that none is infinite or all 0."""
        # log sigmoid(x) = -softplus(-x)
        terms = graph.op("Softplus", graph.op("Neg", scores))
        terms = graph.op("Sub", weights, terms)
        largest = graph.op("ReduceMax", terms, graph.integers(1), keepdims=1)
        powers = graph.op("Exp", graph.op("Sub", terms, largest))
        total = graph.op("ReduceSum", powers, graph.integers(1), keepdims=1)
        return graph.op("Add", graph.op("Log", total), largest)

    on, off = log_sum(strong), log_sum(graph.op("Neg", strong))
    difference = graph.op("Squeeze", graph.op("Sub", on, off), graph.integers(1))
    return graph.in_precision(difference)
