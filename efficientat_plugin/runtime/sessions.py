"""A file's graph as it runs: in ONNX Runtime, or in OpenVINO."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.runtime.model_file import OUTPUTS

Array = NDArray[np.float32]


class Session(Protocol):
    """A graph that can be asked."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file tells of itself."""

    def run(self, value: Array) -> dict[str, Array]:
        """All outputs, by name, of the one input."""


class OnnxRuntimeSession:
    """A graph in ONNX Runtime, on the CPU.

    Arguments
    ---------
    model : Path or bytes
    threads : int or None
        None: as many as there are cores.
    """

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors, which are raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
        content = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no class in common
            version = f"ONNX Runtime {onnxruntime.__version__}"
            raise ValueError(_refusal(model, version, error)) from error
        self.metadata = self._session.get_modelmeta().custom_metadata_map
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, value: Array) -> dict[str, Array]:
        """All outputs, by name, of the one input."""
        found = self._session.run(None, {self._input: value})
        return dict(zip(self._outputs, found, strict=True))


class OpenVinoSession:
    """A graph in OpenVINO, on the CPU, never in less than the file's precision.

    Arguments
    ---------
    model : Path or bytes
    threads : int or None
        None: as many as there are cores.
    """

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        import openvino

        # Where the processor has bfloat16, OpenVINO would compute in it.
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            read = core.read_model(model if isinstance(model, bytes) else str(model))
            self._compiled = core.compile_model(read, "CPU", options)
        except RuntimeError as error:
            version = f"OpenVINO {openvino.__version__.split('-')[0]}"
            raise ValueError(_refusal(model, version, error)) from error
        found = dict(read.get_rt_info()).get("framework", {})  # of an ONNX file
        self.metadata = {name: str(value.value) for name, value in found.items()}
        # A value that a conversion passes on has the names of both.
        self._outputs = [
            next(name for name in OUTPUTS if name in output.get_names())
            for output in self._compiled.outputs
        ]

    def run(self, value: Array) -> dict[str, Array]:
        """All outputs, by name, of the one input."""
        found = self._compiled([value])
        return {name: found[index] for index, name in enumerate(self._outputs)}


SESSIONS: dict[str, type[OnnxRuntimeSession] | type[OpenVinoSession]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}


def installed_backends() -> list[str]:
    """Those of ``SESSIONS`` that can be imported here."""
    return [name for name in SESSIONS if importlib.util.find_spec(name) is not None]


def open_session(
    model: str | Path | bytes, backend: str | None = None, threads: int | None = None
) -> Session:
    """A graph that is ready to run.

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
        Where there is no such file.
    ImportError
        Where the backend is not installed.
    ValueError
        For another backend, and a file that it does not take.
    """
    if backend is not None and backend not in SESSIONS:
        raise ValueError(f"backend={backend!r}; it is one of {', '.join(SESSIONS)}")
    installed = installed_backends()
    if not installed or backend not in (None, *installed):
        missing = backend or "onnxruntime"
        raise ImportError(f"{missing} is not installed; run `pip install {missing}`")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be 1 or more")
    if not isinstance(model, bytes):
        model = Path(model)
        if not model.is_file():
            raise FileNotFoundError(f"{model} is no file; give an exported model")
    return SESSIONS[backend or installed[0]](model, threads)


def _refusal(model: Path | bytes, version: str, error: Exception) -> str:
    name = "the model" if isinstance(model, bytes) else str(model)
    if "opset" in str(error).lower():
        return (
            f"{version} is too old for the opset of {name}; export it with a lower "
            "opset, or install a newer runtime"
        )
    return (
        f"{version} cannot read {name}, so it is damaged or no model; export or copy "
        "it again"
    )
