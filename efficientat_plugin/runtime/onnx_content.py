"""Checks that an ONNX file contains the whole model, before a runtime reads it.

A tensor may name another file that holds its values (external data). Runtimes open
any file it names, and OpenVINO interprets some names as addresses in its own memory.
Exported models have no such tensors, so any model that does is refused.

The file is parsed here, so that neither `onnx` nor `protobuf` has to be installed.

Source: onnx.proto3 of ONNX 1.23; https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator

# Where tensors can occur: field numbers, and the type of message in each field.
FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor
NUMBER, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types


def check_content(content: bytes | memoryview, origin: str) -> None:
    """Raises a ``ValueError`` unless the file contains the whole model.

    Arguments
    ---------
    content : bytes or memoryview
        Content of the file.
    origin : str
        The file, for messages.

    Raises
    ------
    ValueError
        For external data, and if it is not an ONNX file.

    Example
    -------
    >>> check_content(b"<html>", "model.onnx")
    Traceback (most recent call last):
    ValueError: model.onnx is damaged or no model; export or copy it again
    """
    try:
        is_whole = _is_whole(memoryview(content))
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{origin} is damaged or no model; export or copy it again"
        ) from error
    if not is_whole:
        raise ValueError(
            f"{origin} refers to other files for some of its weights (external data), "
            "which is refused because they can be any files on this machine; export "
            "the model again, which writes one file"
        )


def _is_whole(content: memoryview) -> bool:
    """Whether no tensor refers to another file, including tensors in subgraphs."""
    waiting, has_graph = [("ModelProto", content)], False
    while waiting:
        kind, message = waiting.pop()
        for field, value in _fields(message):
            if kind == "TensorProto" and (
                field == EXTERNAL_DATA or (field == DATA_LOCATION and value != 0)
            ):
                return False
            if isinstance(value, memoryview) and field in FIELDS[kind]:
                has_graph |= FIELDS[kind][field] == "GraphProto"
                waiting.append((FIELDS[kind][field], value))
    if not has_graph:
        raise ValueError("it has no graph")
    return True


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields each field of a message: its number, and its value as number or bytes."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _number(message, place)
        field, kind = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise ValueError(f"field {field}")
        if kind == NUMBER:
            value, place = _number(message, place)
            yield field, value
            continue
        if kind == BYTES:
            length, place = _number(message, place)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:  # groups, which ONNX does not use
            raise ValueError(f"a field of kind {kind}")
        if place + length > end:
            raise ValueError("it was cut")
        yield field, message[place : place + length]
        place += length


def _number(message: memoryview, place: int) -> tuple[int, int]:
    """Reads a varint (seven bits per byte, lowest first); returns it and its end."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("a number of more than ten bytes")
