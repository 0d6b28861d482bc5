"""Builds an ONNX graph: constants, nodes, and the storage of weights.

The graph is built operator by operator from the modules instead of traced: this takes
milliseconds, folds batch norm exactly, and names values after the modules.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 9  # of the file, as of onnx 1.14, so that older runtimes can read it
TO_THE_END = 2**62  # as the end of a slice
INT8_MAX, UINT8_MAX = 127, 255


class Range(NamedTuple):
    """The range of a value's 256 levels; 0 is always one of them."""

    low: float
    high: float

    def levels(self) -> tuple[np.float32, np.uint8]:
        """Computes the scale and zero point of uint8."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max(high - low, 1e-8) / UINT8_MAX
        zero_point = min(max(round(-low / scale), 0), UINT8_MAX)
        return np.float32(scale), np.uint8(zero_point)


class Site(NamedTuple):
    """A convolution that can be computed in int8."""

    name: str
    entering: str  # input value
    leaving: str  # output value
    activation: str | None  # after it


class Levels(NamedTuple):
    """Statistics of the inputs and outputs of convolutions in int8."""

    ranges: Mapping[str, Range]  # by NAME:in and NAME:out, with NAME of a `Site`
    means: Mapping[str, NDArray]  # input means by channel, by NAME


class Graph:
    """Collects nodes and constants; values are identified by name.

    Arguments
    ---------
    dtype : type
        Type of the network's weights: ``numpy.float32`` or ``numpy.float16``.
    stores_int8 : bool
        Whether large weights are stored in int8, with a scale per output channel.
    levels : Levels or None
        Levels of the convolutions that compute in int8.

    Example
    -------
    >>> graph = Graph()
    >>> graph.rename(graph.op("Relu", "x"), "y")
    >>> model = graph.model({"x": ["batch", 3]}, {"y": ["batch", 3]}, {}, opset=18)
    >>> [node.op_type for node in model.graph.node]
    ['Relu']
    """

    SMALLEST_INT8 = 1024  # weights; fewer are not worth the scales

    def __init__(
        self,
        dtype: type = np.float32,
        stores_int8: bool = False,
        levels: Levels | None = None,
    ) -> None:
        self.dtype = dtype
        self.stores_int8 = stores_int8
        self.levels = Levels({}, {}) if levels is None else levels
        self.sites: list[Site] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray] = {}
        self._known: dict[bytes, str] = {}  # constants by their content
        self._count = 0

    @property
    def num_int8(self) -> int:
        """Number of convolutions that compute in int8."""
        return sum(f"{site.name}:in" in self.levels.ranges for site in self.sites)

    # --- Values -----------------------------------------------------------------

    def constant(self, value: Any, name: str = "constant") -> str:
        """Adds a constant; equal ones are stored once."""
        array = np.asarray(value, order="C")
        kind = repr((array.dtype, array.shape)).encode()
        key = hashlib.sha256(kind + array.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._new_name(name)
            self._constants[self._known[key]] = array
        return self._known[key]

    def numbers(self, value: Any, name: str = "constant") -> str:
        """Adds a constant in the network's precision."""
        return self.constant(np.asarray(value, dtype=self.dtype), name)

    def integers(self, *values: int) -> str:
        """Adds an int64 constant of shape [values], for shapes and axes."""
        return self.constant(np.array(values, dtype=np.int64))

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node and returns its output value."""
        value = self._new_name(f"{name}/{op_type}" if name else op_type)
        node = helper.make_node(op_type, list(inputs), [value], value, **attributes)
        self._nodes.append(node)
        return value

    def rename(self, value: str, name: str) -> None:
        """Renames a value, to the name of an output."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for place, found in enumerate(names):
                    if found == value:
                        names[place] = name

    # --- Operators of students --------------------------------------------------

    def reshape(self, value: str, *shape: int) -> str:
        """Reshapes a value; 0 keeps a dimension, -1 is inferred."""
        return self.op("Reshape", value, self.integers(*shape))

    def mean(self, value: str, *axes: int, keepdims: bool = False) -> str:
        """Averages over axes."""
        return self.op(
            "ReduceMean", value, self.integers(*axes), keepdims=int(keepdims)
        )

    def sum(self, value: str, axis: int) -> str:
        """Sums over an axis and removes it."""
        return self.op("ReduceSum", value, self.integers(axis), keepdims=0)

    def cut(self, value: str, start: int, end: int, axis: int) -> str:
        """Slices an axis; a negative end counts from the last element."""
        return self.op(
            "Slice",
            value,
            self.integers(start),
            self.integers(end),
            self.integers(axis),
        )

    def weight(self, value: NDArray[np.float64], name: str) -> str:
        """Adds a weight [outputs, ...] in the network's precision, or in int8."""
        if self._is_stored_in_int8(value):
            return self._dequantized(value, name)[0]
        return self.numbers(value, name)

    def _is_stored_in_int8(self, weight: NDArray) -> bool:
        return self.stores_int8 and weight.size >= self.SMALLEST_INT8

    def dense(
        self, value: str, weight: NDArray, bias: NDArray | None, name: str
    ) -> str:
        """Adds a linear layer: [B, inputs] -> [B, outputs]."""
        terms = [] if bias is None else [self.numbers(bias, f"{name}.bias")]
        return self.op(
            "Gemm",
            value,
            self.weight(weight, f"{name}.weight"),
            *terms,
            transB=1,
            name=name,
        )

    def linear(
        self, value: str, weight: NDArray, bias: NDArray | None, name: str
    ) -> str:
        """Adds a linear layer over the last of any axes: [..., inputs] -> outputs."""
        rows = self.weight(weight, f"{name}.weight")
        columns = self.op("Transpose", rows, perm=[1, 0])
        product = self.op("MatMul", value, columns, name=name)
        if bias is None:
            return product
        return self.op("Add", product, self.numbers(bias, f"{name}.bias"))

    def in_float32(self, value: str, is_integer: bool = False) -> str:
        """Converts a value of the network, or an integer, to float32."""
        if self.dtype is np.float32 and not is_integer:
            return value
        return self.op("Cast", value, to=TensorProto.FLOAT)

    def in_precision(self, value: str) -> str:
        """Converts a float32 value to the network's precision."""
        if self.dtype is np.float32:
            return value
        return self.op("Cast", value, to=TensorProto.FLOAT16)

    def conv(
        self,
        value: str,
        weight: NDArray,
        bias: NDArray,
        name: str,
        activation: str | None = None,
        **attributes: Any,
    ) -> str:
        """Adds a convolution with its activation; in int8 if its ranges are known.

        Arguments
        ---------
        value : str
            [B, C, F, T]
        weight : NDArray
            [outputs, C / groups, kernel, kernel]
        bias : NDArray
            [outputs]
        name : str
            Name of the module.
        activation : str or None
            "Relu" or "HardSwish".
        **attributes
            Attributes of the operator.
        """
        entering, leaving = f"{name}:in", f"{name}:out"
        is_int8 = entering in self.levels.ranges
        if name in self.levels.means and (is_int8 or self._is_stored_in_int8(weight)):
            bias = bias - _shift(weight, self.levels.means[name])
        if is_int8:
            inner, scale = self._levelled(value, self.levels.ranges[entering])
            kernel, scales = self._dequantized(weight, f"{name}.weight")
            offset = self._int32_bias(bias, scale * scales, f"{name}.bias")
        else:
            inner, kernel = value, self.weight(weight, f"{name}.weight")
            offset = self.numbers(bias, f"{name}.bias")
        result = self.op("Conv", inner, kernel, offset, name=name, **attributes)
        # Outputs are quantized after a ReLU, but before a HardSwish.
        if activation == "Relu":
            result = self.op("Relu", result, name=name)
        self.sites.append(Site(name, value, result, activation))
        if is_int8 and leaving in self.levels.ranges:
            result, _ = self._levelled(result, self.levels.ranges[leaving])
        if activation == "HardSwish":
            result = self.op("HardSwish", result, name=name)
        return result

    # --- int8 -------------------------------------------------------------------

    def _levelled(self, value: str, span: Range) -> tuple[str, np.float32]:
        """Rounds a value to the levels of its range; returns it and their distance."""
        scale, zero_point = span.levels()
        levels = [self.constant(scale), self.constant(zero_point)]
        rounded = self.op("QuantizeLinear", value, *levels)
        return self.op("DequantizeLinear", rounded, *levels), scale

    def _dequantized(
        self, weight: NDArray, name: str
    ) -> tuple[str, NDArray[np.float32]]:
        """Adds a weight [outputs, ...] stored in int8; returns it and its scales."""
        scales, rounded = rounded_weight(weight)
        zero_points = np.zeros(len(scales), np.int8)
        value = self.op(
            "DequantizeLinear",
            self.constant(rounded, name),
            self.constant(scales, f"{name}.scale"),
            self.constant(zero_points),
            axis=0,
        )
        return value, scales

    def _int32_bias(self, bias: NDArray, scales: NDArray[np.float32], name: str) -> str:
        scales = scales.astype(np.float32)
        limits = np.iinfo(np.int32)
        rounded = np.clip(np.round(bias / scales), limits.min, limits.max)
        return self.op(
            "DequantizeLinear",
            self.constant(rounded.astype(np.int32), name),
            self.constant(scales, f"{name}.scale"),
            self.constant(np.zeros(len(scales), np.int32)),
            axis=0,
        )

    # --- Model ------------------------------------------------------------------

    def model(
        self,
        inputs: Mapping[str, Sequence[str | int]],
        outputs: Mapping[str, Sequence[str | int]],
        metadata: Mapping[str, str],
        opset: int,
    ) -> onnx.ModelProto:
        """Builds the model; inputs and outputs are float32, by name and shape."""

        def values(shapes: Mapping[str, Sequence[str | int]]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
                for name, shape in shapes.items()
            ]

        used = {name for node in self._nodes for name in node.input}
        constants = [
            numpy_helper.from_array(value, name)
            for name, value in self._constants.items()
            if name in used
        ]
        graph = helper.make_graph(
            self._nodes, "student", values(inputs), values(outputs), constants
        )
        model = helper.make_model(
            graph,
            producer_name="efficientat_plugin",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", opset)],
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def _new_name(self, base: str) -> str:
        self._count += 1
        return f"{base}_{self._count}"


def rounded_weight(
    weight: NDArray,
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Rounds a weight [outputs, ...] to int8; returns scales [outputs] and integers.

    Example
    -------
    >>> scales, rounded = rounded_weight(np.array([[1.27, -0.5], [0.0, 0.0]]))
    >>> rounded
    array([[127, -50],
           [  0,   0]], dtype=int8)
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scales = (np.maximum(largest, 1e-8) / INT8_MAX).astype(np.float32)
    shape = (-1, *[1] * (weight.ndim - 1))
    rounded = np.round(weight / scales.reshape(shape).astype(np.float64))
    return scales, np.clip(rounded, -INT8_MAX, INT8_MAX).astype(np.int8)


def _shift(weight: NDArray, means: NDArray) -> NDArray[np.float64]:
    """Computes the mean shift of outputs by rounding a kernel, from its input means."""
    scales, rounded = rounded_weight(weight)
    error = rounded * scales[:, None, None, None].astype(np.float64) - weight
    groups = len(means) // weight.shape[1]
    of_group = means.reshape(groups, -1).repeat(len(weight) // groups, axis=0)
    return np.einsum("oi,oi->o", error.sum((2, 3)), of_group)
