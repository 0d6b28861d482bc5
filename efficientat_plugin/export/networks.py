"""Converts students to graphs: each kind of module to its operators.

Batch norms are folded into the convolutions before them, in float64. Support for a new
module is a function registered with ``add_module``.
"""

from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from efficientat_plugin.export.graph import TO_THE_END, Graph
from efficientat_plugin.students.blocks import (
    ConcurrentSqueezeExcite,
    ConvNormActivation,
    InvertedResidual,
    SqueezeExcite,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.dynamic import (
    ContextGenerator,
    DynamicConv,
    DynamicInvertedResidual,
    DynamicReLU,
    StaticConv,
)
from efficientat_plugin.students.embeddings import size_behind
from efficientat_plugin.students.heads import (
    MLP,
    FullyConvolutional,
    Linear,
    MultiheadAttentionPooling,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "Relu", nn.Hardswish: "HardSwish"}
FUSED_BY = {"max": "Max", "avg": "Add", "add": "Add", "min": "Min"}


def add_student(
    graph: Graph, log_mel: str, student: Student, n_mels: int
) -> tuple[str, str]:
    """Adds what a student computes in evaluation mode.

    Arguments
    ---------
    graph : Graph
    log_mel : str
        Value [B, F, T], in the network's precision.
    student : Student
    n_mels : int
        F

    Returns
    -------
    logits : str
        [B, K]
    embedding : str
        [B, D]

    Raises
    ------
    ValueError
        For a student that cannot be exported to ONNX.
    """
    maps = graph.op("Unsqueeze", log_mel, graph.integers(1))  # [B, 1, F, T]
    maps = add_maps(student, graph, maps, n_mels)
    embedding = graph.mean(maps, 2, 3)
    return add_head(student.classifier, graph, maps, embedding), embedding


def values_of(tensor: Tensor) -> NDArray[np.float64]:
    """Returns a parameter's values in float64."""
    return tensor.detach().cpu().double().numpy()


def folded(norm: nn.BatchNorm2d) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the scale and offset of a batch norm in evaluation mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = values_of(norm.weight) / np.sqrt(values_of(norm.running_var) + norm.eps)
    return scale, values_of(norm.bias) - values_of(norm.running_mean) * scale


def _layout(conv: nn.Conv2d) -> dict[str, Any]:
    """Returns the attributes of a convolution with symmetric padding."""
    return {
        "kernel_shape": list(conv.kernel_size),
        "strides": list(conv.stride),
        "dilations": list(conv.dilation),
        "pads": [int(side) for side in conv.padding] * 2,
        "group": conv.groups,
    }


def _conv_norm(
    graph: Graph,
    maps: str,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    name: str,
    activation: str | None = None,
) -> str:
    scale, offset = folded(norm)
    weight = values_of(conv.weight) * scale[:, None, None, None]
    return graph.conv(maps, weight, offset, name, activation, **_layout(conv))


def _dense(graph: Graph, value: str, layer: nn.Linear, name: str) -> str:
    return graph.dense(value, values_of(layer.weight), values_of(layer.bias), name)


# --- Students: from [B, 1, F, T] to [B, D, F', T'] --------------------------------


@singledispatch
def add_maps(student: Student, graph: Graph, log_mel: str, bands: int) -> str:
    """Adds a student's layers up to the maps that the head classifies."""
    raise ValueError(
        f"a {type(student).__name__} cannot be exported; export an MN or a DyMN"
    )


@add_maps.register
def _mn(student: MN, graph: Graph, log_mel: str, bands: int) -> str:
    maps = log_mel
    for number, stage in enumerate(student.features):
        maps = add_module(stage, graph, maps, f"features.{number}")
    return maps


@add_maps.register
def _dymn(student: DyMN, graph: Graph, log_mel: str, bands: int) -> str:
    maps = add_module(student.in_c, graph, log_mel, "in_c")
    bands = size_behind(student.in_c, bands)[1]
    temperature = float(student.temperature)
    for number, layer in enumerate(student.layers):
        name = f"layers.{number}"
        if isinstance(layer, DynamicInvertedResidual):
            maps = _DynamicBlock(graph, layer, temperature, bands, name).add(maps)
        else:
            maps = add_module(layer, graph, maps, name)
        bands = size_behind(layer, bands)[1]
    return add_module(student.out_c, graph, maps, "out_c")


@singledispatch
def add_module(module: nn.Module, graph: Graph, maps: str, name: str) -> str:
    """Adds a module and returns its output."""
    raise ValueError(
        f"{name} is a {type(module).__name__}, which cannot be exported; register a "
        "conversion with add_module"
    )


@add_module.register
def _conv_norm_activation(
    module: ConvNormActivation, graph: Graph, maps: str, name: str
) -> str:
    conv, norm = module[0], module[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    activation = ACTIVATIONS[type(module[2])] if len(module) > 2 else None
    return _conv_norm(graph, maps, conv, norm, name, activation)


@add_module.register
def _inverted_residual(
    module: InvertedResidual, graph: Graph, maps: str, name: str
) -> str:
    inner = maps
    for number, part in enumerate(module.block):
        inner = add_module(part, graph, inner, f"{name}.block.{number}")
    return graph.op("Add", inner, maps) if module.has_residual else inner


@add_module.register
def _concurrent(
    module: ConcurrentSqueezeExcite, graph: Graph, maps: str, name: str
) -> str:
    fused = None
    for number, layer in enumerate(module.conc_se_layers):
        assert isinstance(layer, SqueezeExcite)
        gate = _gate(graph, maps, layer, f"{name}.conc_se_layers.{number}")
        gated = graph.op("Mul", maps, gate)
        if fused is not None:
            gated = graph.op(FUSED_BY[module.se_agg], fused, gated)
        fused = gated
    assert fused is not None
    if module.se_agg == "avg":
        count = graph.numbers(len(module.conc_se_layers))
        return graph.op("Div", fused, count)
    return fused


def _gate(graph: Graph, maps: str, layer: SqueezeExcite, name: str) -> str:
    squeezed = graph.mean(maps, *layer.other_dims)
    squeezed = graph.op("Relu", _dense(graph, squeezed, layer.fc1, f"{name}.fc1"))
    gate = graph.op("Sigmoid", _dense(graph, squeezed, layer.fc2, f"{name}.fc2"))
    return graph.reshape(gate, 0, *layer.gate_shape)


# --- Dynamic blocks -------------------------------------------------------------


class _DynamicBlock:
    """Adds a dynamic block, for batches of any size.

    Arguments
    ---------
    graph : Graph
    block : DynamicInvertedResidual
    temperature : float
        Temperature of the attention over kernels.
    bands : int
        Bands of the input maps.
    name : str
    """

    def __init__(
        self,
        graph: Graph,
        block: DynamicInvertedResidual,
        temperature: float,
        bands: int,
        name: str,
    ) -> None:
        self.graph, self.block, self.name = graph, block, name
        self.temperature = temperature
        self.bands = bands
        self.bands_behind = size_behind(block, bands)[1]

    def add(self, maps: str) -> str:
        """[B, C, F, T] -> [B, C', F', T']"""
        graph, block = self.graph, self.block
        vector, band_gate, frame_gate = self._context(maps, block.context_gen)
        inner = maps
        if block.is_expanding:
            inner = self._convolution(
                inner, vector, "exp", ACTIVATIONS[type(block.exp_act)]
            )
        static = None
        if not isinstance(block.depth_act, DynamicReLU):
            static = ACTIVATIONS[type(block.depth_act)]
        inner = self._convolution(inner, vector, "depth", static)
        if isinstance(block.depth_act, DynamicReLU):
            inner = self._relu(inner, vector, block.depth_act)
        if band_gate is not None and frame_gate is not None:
            inner = graph.op("Mul", graph.op("Mul", inner, band_gate), frame_gate)
        inner = self._convolution(inner, vector, "proj", None)
        return graph.op("Add", inner, maps) if block.has_residual else inner

    def _context(
        self, maps: str, context: ContextGenerator
    ) -> tuple[str, str | None, str | None]:
        """Adds the vector [B, H] and the gates [B, e, F', 1] and [B, e, 1, T']."""
        graph, name = self.graph, f"{self.name}.context_gen"
        of_bands, of_frames = (
            _conv_norm(
                graph,
                graph.mean(maps, axis, keepdims=True),
                context.joint_conv,
                context.joint_norm,
                f"{name}.joint_conv",
                "HardSwish",
            )
            for axis in (3, 2)
        )
        turned = graph.op("Transpose", of_frames, perm=[0, 1, 3, 2])
        sequence = graph.op("Concat", of_bands, turned, axis=2)
        vector = graph.mean(sequence, 2, 3)
        if not context.use_coordinate_attention:
            return vector, None, None
        gates = []
        for value, conv, axis in (
            (of_bands, context.conv_f, 0),
            (of_frames, context.conv_t, 1),
        ):
            if context.stride > 1:
                along = [1, 1]
                along[axis] = 3
                strides = [1, 1]
                strides[axis] = context.stride
                pads = [0, 0]
                pads[axis] = 1
                value = graph.op(
                    "AveragePool",
                    value,
                    kernel_shape=along,
                    strides=strides,
                    pads=pads * 2,
                    count_include_pad=1,
                )
            assert conv.bias is not None
            gate = graph.conv(
                value,
                values_of(conv.weight),
                values_of(conv.bias),
                f"{name}.conv_{'ft'[axis]}",
                **_layout(conv),
            )
            gates.append(graph.op("Sigmoid", gate))
        return vector, gates[0], gates[1]

    def _convolution(
        self, maps: str, vector: str, stage: str, activation: str | None
    ) -> str:
        """Adds the convolution of a stage (exp, depth or proj), norm and activation."""
        graph, name = self.graph, f"{self.name}.{stage}_conv"
        conv = self.block.get_submodule(f"{stage}_conv")
        norm = self.block.get_submodule(f"{stage}_norm")
        assert isinstance(norm, nn.BatchNorm2d)
        if isinstance(conv, StaticConv):
            return _conv_norm(graph, maps, conv.module, norm, name, activation)
        assert isinstance(conv, DynamicConv)
        residuals = conv.residuals[0]
        assert isinstance(residuals, nn.Linear)
        attention = graph.dense(
            vector,
            values_of(residuals.weight) / self.temperature,
            values_of(residuals.bias) / self.temperature,
            f"{name}.residuals",
        )
        attention = graph.op("Softmax", attention, axis=1)  # [B, k]
        scale, offset = folded(norm)
        bank = values_of(conv.weight)[0, 0]  # [k, out * in / groups * kernel ** 2]
        bank = bank.reshape(len(bank), conv.out_channels, -1) * scale[None, :, None]
        if conv.kernel == 1:
            maps = self._pointwise(maps, attention, bank, offset, stage, name)
        else:
            maps = self._depthwise(maps, attention, bank, offset, conv, name)
        return graph.op(activation, maps, name=name) if activation else maps

    def _pointwise(
        self,
        maps: str,
        attention: str,
        bank: NDArray,
        offset: NDArray,
        stage: str,
        name: str,
    ) -> str:
        """Multiplies the mixed kernel of each clip by its maps."""
        graph = self.graph
        kernels, out_channels, in_channels = bank.shape
        weight = graph.weight(bank.reshape(-1, in_channels), f"{name}.weight")
        weight = graph.reshape(weight, kernels, -1)
        kernel = graph.reshape(
            graph.op("MatMul", attention, weight), 0, out_channels, in_channels
        )
        product = graph.op("MatMul", kernel, graph.reshape(maps, 0, in_channels, -1))
        product = graph.op("Add", product, graph.numbers(offset[:, None]))
        bands = self.bands if stage == "exp" else self.bands_behind
        return graph.reshape(product, 0, out_channels, bands, -1)

    def _depthwise(
        self,
        maps: str,
        attention: str,
        bank: NDArray,
        offset: NDArray,
        conv: DynamicConv,
        name: str,
    ) -> str:
        """Mixes the outputs of the k kernels, as the convolution is linear.

        Mixing the kernels would need a different weight per clip, which no operator
        supports for batches of any size. Separate convolutions are faster than one with
        k times the channels.
        """
        graph, side = self.graph, conv.kernel
        padding = (side - 1) // 2 * conv.dilation
        mixed = ""
        for number, kernel in enumerate(bank):
            share = graph.cut(attention, number, number + 1, axis=1)
            filtered = graph.conv(
                maps,
                kernel.reshape(-1, 1, side, side),
                offset,  # added once in total: the shares sum to 1
                f"{name}.{number}",
                kernel_shape=[side, side],
                strides=[conv.stride] * 2,
                dilations=[conv.dilation] * 2,
                pads=[padding] * 4,
                group=len(kernel),
            )
            weighted = graph.op("Mul", filtered, graph.reshape(share, 0, 1, 1, 1))
            mixed = graph.op("Add", mixed, weighted) if mixed else weighted
        return mixed

    def _relu(self, maps: str, vector: str, relu: DynamicReLU) -> str:
        graph, channels, lines = self.graph, relu.channels, relu.dyrelu_k
        layer = relu.coef_net[0]
        assert isinstance(layer, nn.Linear)
        # Reorders rows from channel-major to coefficient-major.
        order = np.arange(2 * lines * channels).reshape(channels, -1).T.reshape(-1)
        theta = graph.dense(
            vector,
            values_of(layer.weight)[order],
            values_of(layer.bias)[order],
            f"{self.name}.depth_act.coef_net",
        )
        # (2 sigmoid - 1) * range + centre
        ranges = np.repeat(values_of(relu.lambdas), channels)
        centres = np.repeat(values_of(relu.init_v), channels)
        coefficients = graph.op(
            "Mul", graph.op("Sigmoid", theta), graph.numbers(2 * ranges)
        )
        coefficients = graph.op("Add", coefficients, graph.numbers(centres - ranges))
        coefficients = graph.reshape(coefficients, 0, 2 * lines, channels, 1, 1)
        found = [
            graph.reshape(
                graph.cut(coefficients, number, number + 1, axis=1), 0, channels, 1, 1
            )
            for number in range(2 * lines)
        ]
        results = [
            graph.op("Add", graph.op("Mul", maps, slope), offset)
            for slope, offset in zip(found[:lines], found[lines:], strict=True)
        ]
        return graph.op("Max", *results) if lines > 1 else results[0]


# --- Heads: from maps [B, D, F', T'] and their mean [B, D] to logits --------------


@singledispatch
def add_head(head: nn.Module, graph: Graph, maps: str, embedding: str) -> str:
    """Adds a head and returns the logits [B, K]."""
    raise ValueError(
        f"a head of type {type(head).__name__} cannot be exported; those of HEADS can"
    )


@add_head.register
def _mlp(head: MLP, graph: Graph, maps: str, embedding: str) -> str:
    hidden, last = head[2], head[5]
    assert isinstance(hidden, nn.Linear) and isinstance(last, nn.Linear)
    value = graph.op("HardSwish", _dense(graph, embedding, hidden, "classifier.2"))
    return _dense(graph, value, last, "classifier.5")


@add_head.register
def _linear(head: Linear, graph: Graph, maps: str, embedding: str) -> str:
    last = head[2]
    assert isinstance(last, nn.Linear)
    return _dense(graph, embedding, last, "classifier.2")


@add_head.register
def _fully_convolutional(
    head: FullyConvolutional, graph: Graph, maps: str, embedding: str
) -> str:
    # It is linear in the maps, so the mean can be taken first.
    conv, norm = head[0], head[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    scale, offset = folded(norm)
    weight = values_of(conv.weight)[:, :, 0, 0] * scale[:, None]
    return graph.dense(embedding, weight, offset, "classifier.0")


@add_head.register
def _attention_pooling(
    head: MultiheadAttentionPooling, graph: Graph, maps: str, embedding: str
) -> str:
    heads, classes = head.head_weight.shape[1], head.num_classes
    frames = graph.op("Transpose", graph.mean(maps, 2), perm=[0, 2, 1])  # [B, T', D]
    projection = values_of(head.subspace_proj.weight)
    projected = graph.op(
        "MatMul",
        frames,
        graph.op("Transpose", graph.weight(projection, "classifier.subspace_proj")),
    )
    bias = graph.numbers(values_of(head.subspace_proj.bias))
    projected = graph.op("Add", projected, bias)
    attention = graph.op("Sigmoid", graph.cut(projected, 0, heads * classes, axis=2))
    attention = graph.op(
        "Clip", attention, graph.numbers(head.FLOOR), graph.numbers(1 - head.FLOOR)
    )
    values = graph.cut(projected, heads * classes, TO_THE_END, axis=2)
    weighted = graph.sum(graph.op("Mul", attention, values), 1)
    pooled = graph.op("Div", weighted, graph.sum(attention, 1))
    pooled = graph.reshape(pooled, 0, heads, classes)
    weights = graph.numbers(values_of(head.head_weight)[0])  # [heads, 1]
    return graph.sum(graph.op("Mul", pooled, weights), 1)
