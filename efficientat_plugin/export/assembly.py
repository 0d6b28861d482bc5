"""Builds the ONNX model: inputs, outputs, precision and metadata."""

import numpy as np
import onnx

from efficientat_plugin.export.frame_networks import add_frame_student
from efficientat_plugin.export.graph import Graph, Levels
from efficientat_plugin.export.log_mel import add_log_mel, front_end_settings
from efficientat_plugin.export.networks import add_student
from efficientat_plugin.export.source import Source
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    FRAME_LOGITS,
    LOG_MEL,
    LOGITS,
    PROBABILITIES,
    WAVEFORM,
    ModelFacts,
)
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.student import Student

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
    graph = Graph(
        np.float16 if precision == "fp16" else np.float32,
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
    outputs = _add_network(graph, graph.in_precision(value), student, log_mel.n_mels)
    if front_end == "in":
        if source.model.target == "multilabel":
            probabilities = graph.op("Sigmoid", LOGITS)
        else:
            probabilities = graph.op("Softmax", LOGITS, axis=1)
        graph.rename(probabilities, PROBABILITIES)
        outputs = {PROBABILITIES: outputs[LOGITS], **outputs}
    texts = facts_of(source, precision, front_end).as_texts()
    return graph, graph.model(inputs, outputs, texts, opset)


def _add_network(
    graph: Graph, log_mel: str, student: Student, n_mels: int
) -> dict[str, list[str | int]]:
    """Adds the student; returns the shapes of the outputs by name."""
    outputs: dict[str, list[str | int]]
    values: tuple[str, ...]
    if isinstance(student, FrameStudent):
        values = add_frame_student(graph, log_mel, student)
        channels = student.class_layer().in_features
        outputs = {
            LOGITS: ["batch", student.num_weak_classes],
            EMBEDDING: ["batch", "student_frames", channels],
            FRAME_LOGITS: ["batch", "student_frames", student.num_classes],
        }
    else:
        values = add_student(graph, log_mel, student, n_mels)
        outputs = {
            LOGITS: ["batch", student.num_classes],
            EMBEDDING: ["batch", student.stages()[-1][1].num_features],  # type: ignore[index]
        }
    for value, name in zip(values, outputs, strict=True):
        graph.rename(graph.in_float32(value), name)
    return outputs


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
        frame_samples=source.frame_samples,
        max_frames=source.max_frames,
        event_options=model.event_options,
    )
