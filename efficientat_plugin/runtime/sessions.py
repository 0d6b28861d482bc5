"""Runs the graph of a file in ONNX Runtime or OpenVINO."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.runtime.model_file import INPUTS, LOGITS, OUTPUTS
from efficientat_plugin.runtime.onnx_content import check_content
from efficientat_plugin.support.files import open_file
from efficientat_plugin.support.limits import MAX_MODEL_BYTES

Array = NDArray[np.float32]


class Session(Protocol):
    """A graph that is ready to run."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of the file."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the inputs."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""

    @property
    def num_classes(self) -> int | None:
        """K of the logits; None if there are no logits, or K is not fixed."""

    def run(self, value: Array) -> dict[str, Array]:
        """Computes all outputs, by name, from the only input."""


class OnnxRuntimeSession:
    """Runs a graph in ONNX Runtime, on the CPU.

    Arguments
    ---------
    model : bytes
        Content of the file, checked by ``check_content``.
    origin : str
        The file, for messages.
    threads : int or None
        None: as many as there are cores.
    """

    def __init__(self, model: bytes, origin: str, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors, which are raised as well
        # Threads that spin while waiting would take cores from the log-mel.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        version = f"ONNX Runtime {onnxruntime.__version__}"
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class
            raise ValueError(_refusal(origin, version, error)) from error
        try:
            self.metadata = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise ValueError(_refusal(origin, version, error)) from error
        shapes = {each.name: each.shape for each in self._session.get_outputs()}
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = list(shapes)
        self.num_classes = shapes[LOGITS][-1] if shapes.get(LOGITS) else None

    def run(self, value: Array) -> dict[str, Array]:
        """Computes all outputs, by name, from the only input."""
        found = self._session.run(None, {self.inputs[0]: value})
        return dict(zip(self.outputs, found, strict=True))


class OpenVinoSession:
    """Runs a graph in OpenVINO, on the CPU, never below the file's precision.

    It takes the arguments of ``OnnxRuntimeSession``.
    """

    def __init__(self, model: bytes, origin: str, threads: int | None = None) -> None:
        import openvino

        # OpenVINO would compute in bfloat16 if the processor supports it.
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        version = f"OpenVINO {openvino.__version__.split('-')[0]}"
        try:
            read = core.read_model(model)
            self._compiled = core.compile_model(read, "CPU", options)
            found = dict(read.get_rt_info()).get("framework", {})  # of an ONNX file
            self.metadata = {name: str(value.value) for name, value in found.items()}
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ValueError(_refusal(origin, version, error)) from error
        self._one_at_a_time = Lock()  # threads would overwrite its only request
        self.inputs = [_known(each, INPUTS) for each in self._compiled.inputs]
        self.outputs = [_known(each, OUTPUTS) for each in self._compiled.outputs]
        self.num_classes: int | None = None
        if LOGITS in self.outputs:
            logits = self._compiled.outputs[self.outputs.index(LOGITS)]
            shape = logits.get_partial_shape()
            if shape.rank.is_static and len(shape) and shape[-1].is_static:
                self.num_classes = shape[-1].get_length()

    def run(self, value: Array) -> dict[str, Array]:
        """Computes all outputs, by name, from the only input."""
        with self._one_at_a_time:
            found = self._compiled([value])
        return {name: found[index] for index, name in enumerate(self.outputs)}


def _known(value: Any, names: Sequence[str]) -> str:
    """Returns which of the names a value has; passed-through values have several."""
    return next((name for name in names if name in value.get_names()), "")


SESSIONS: dict[str, type[OnnxRuntimeSession] | type[OpenVinoSession]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}


def installed_backends() -> list[str]:
    """Lists the backends in ``SESSIONS`` that can be imported."""
    return [name for name in SESSIONS if importlib.util.find_spec(name) is not None]


def open_session(
    model: str | Path | bytes, backend: str | None = None, threads: int | None = None
) -> Session:
    """Loads a graph, ready to run.

    Arguments
    ---------
    model : str, Path or bytes
        A file, or its content.
    backend : str or None
        "onnxruntime" or "openvino"; None: the first that is installed.
    threads : int or None
        None: as many as there are cores.

    Returns
    -------
    Session

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ImportError
        If the backend is not installed.
    ValueError
        For an unknown backend, a file that it cannot run, and one that refers to
        other files.
    """
    if backend is not None and backend not in SESSIONS:
        raise ValueError(f"backend={backend!r}; it is one of {', '.join(SESSIONS)}")
    installed = installed_backends()
    if not installed or backend not in (None, *installed):
        missing = backend or "onnxruntime"
        raise ImportError(f"{missing} is not installed; run `pip install {missing}`")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be 1 or more")
    origin = "the model"
    if not isinstance(model, bytes):
        origin, model = str(model), _content(Path(model))
    check_content(model, origin)
    return SESSIONS[backend or installed[0]](model, origin, threads)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give an exported model")
    with open_file(path, MAX_MODEL_BYTES) as file:
        return file.read()


# Parts of the runtimes' messages about an operator, or a type of it, that they lack
SIGNS_OF_LACK = (
    "not_implemented",
    "not a registered",
    "no op registered",
    "no conversion rule",
)


def _refusal(name: str, version: str, error: Exception) -> str:
    # The file name may contain such words.
    reason = str(error).replace(name, "").lower()
    if "opset" in reason or "ir version" in reason:
        return (
            f"{version} is too old for the opset of {name}; export it with a lower "
            "opset, or install a newer runtime"
        )
    if any(sign in reason for sign in SIGNS_OF_LACK):
        return (
            f"{version} lacks an operator of {name}; export it in another precision, "
            "or install a newer runtime"
        )
    return (
        f"{version} cannot read {name}, so it is damaged or no model; export or copy "
        "it again"
    )
