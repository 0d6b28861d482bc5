"""Builds the ONNX model: inputs, outputs, precision and metadata."""

import numpy as np
import onnx

from efficientat_plugin.export.graph import Graph, Levels
from efficientat_plugin.export.log_mel import add_log_mel, front_end_settings
from efficientat_plugin.export.networks import add_student
from efficientat_plugin.export.source import Source
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    LOG_MEL,
    LOGITS,
    PROBABILITIES,
    WAVEFORM,
    ModelFacts,
)

OLDEST_OPSET = 18  # from then on, ReduceMean takes its axes as an input


def build_model(
    source: Source,
    precision: str,
    front_end: str,
    opset: int,
    levels: Levels | None = None,
) -> tuple[Graph, onnx.ModelProto]:
    """Builds the graph of a model, with its metadata.

    Arguments
    ---------
    source : Source
    precision : str
        "fp32", "fp16", "int8_weights" or "int8".
    front_end : str
        "in" or "out".
    opset : int
    levels : Levels or None
        Levels of the convolutions that compute in int8.

    Returns
    -------
    Graph, onnx.ModelProto
    """
    student, log_mel = source.model.student, source.log_mel
    is_half = precision == "fp16"
    graph = Graph(
        np.float16 if is_half else np.float32,
        stores_int8=precision.startswith("int8"),
        levels=levels,
    )
    frames: str | int = source.num_frames or "frames"
    if front_end == "in":
        inputs: dict[str, list[str | int]] = {WAVEFORM: ["batch", "samples"]}
        value = add_log_mel(graph, WAVEFORM, log_mel)
    else:
        inputs = {LOG_MEL: ["batch", log_mel.n_mels, frames]}
        value = LOG_MEL
    if is_half:
        value = graph.op("Cast", value, to=onnx.TensorProto.FLOAT16)
    logits, embedding = add_student(graph, value, student, log_mel.n_mels)
    if is_half:
        logits = graph.op("Cast", logits, to=onnx.TensorProto.FLOAT)
        embedding = graph.op("Cast", embedding, to=onnx.TensorProto.FLOAT)
    graph.rename(logits, LOGITS)
    graph.rename(embedding, EMBEDDING)
    outputs: dict[str, list[str | int]] = {
        LOGITS: ["batch", student.num_classes],
        EMBEDDING: ["batch", student.stages()[-1][1].num_features],  # type: ignore[index]
    }
    if front_end == "in":
        if source.model.target == "multilabel":
            probabilities = graph.op("Sigmoid", LOGITS)
        else:
            probabilities = graph.op("Softmax", LOGITS, axis=1)
        graph.rename(probabilities, PROBABILITIES)
        outputs = {PROBABILITIES: outputs[LOGITS], **outputs}
    texts = facts_of(source, precision, front_end).as_texts()
    return graph, graph.model(inputs, outputs, texts, opset)


def facts_of(source: Source, precision: str, front_end: str) -> ModelFacts:
    """Collects the metadata of the file."""
    model = source.model
    return ModelFacts(
        source=source.name,
        sha256=source.sha256,
        student=model.student.describe(),
        labels=model.labels,
        target=model.target,
        clip_seconds=model.clip_seconds,
        short_clips=model.short_clips,
        front_end=front_end_settings(source.log_mel),
        has_front_end=front_end == "in",
        num_frames=source.num_frames,
        precision=precision,
    )
