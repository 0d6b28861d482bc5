"""Exports a trained student to an ONNX file, with files for ports next to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export.assembly import OLDEST_OPSET, build_model
from efficientat_plugin.export.golden import write_golden
from efficientat_plugin.export.parity import Parity, check_parity
from efficientat_plugin.export.quantize import observe
from efficientat_plugin.export.source import find_source
from efficientat_plugin.export.writing import check_path, written_together

PRECISIONS = ("fp32", "fp16", "int8_weights", "int8")
FRONT_ENDS = ("in", "out")


class Exported(NamedTuple):
    """The files written, and how closely they match PyTorch."""

    path: Path
    num_bytes: int
    parity: Parity
    num_int8: int  # convolutions that compute in int8
    others: tuple[Path, ...]  # files next to it


def export_onnx(
    source: str | Path,
    path: str | Path,
    precision: str = "fp32",
    front_end: str = "in",
    opset: int = OLDEST_OPSET,
    calibration: Sequence[str | Path] = (),
    labels: LabelTable | None = None,
    savedir: str | Path | None = None,
    **stated: Any,
) -> Exported:
    """Exports a student, checks the file against PyTorch, and writes it.

    Arguments
    ---------
    source : str or Path
        A name, a weights file or a model folder.
    path : str or Path
        The file to write, which ends in .onnx. Reference vectors and the front end's
        constants are written next to it.
    precision : str
        "fp32"; "fp16": weights and activations of the network; "int8_weights":
        stored weights only, computing in float32; "int8": convolutions, too.
    front_end : str
        "in": waveform to probabilities, logits and embedding; "out": log-mel to
        logits and embedding.
    opset : int
        ONNX operator set, 18 or more.
    calibration : sequence of str or Path
        Sounds like those the model is meant for; for "int8" only.
    labels : LabelTable or None
        Classes of a weights file that does not contain them.
    savedir : str, Path or None
        Folder for downloads.
    **stated
        Other settings that such a file does not contain; see `find_source`.

    Returns
    -------
    Exported

    Raises
    ------
    OSError, ValueError
        If the model cannot be exported, or the file's results differ from PyTorch's;
        then nothing is written.

    Example
    -------
    >>> export_onnx("mn04_as", "mn04_as.onnx").parity  # doctest: +SKIP
    """
    path = Path(path)
    _check_options(path, precision, front_end, opset, calibration)
    found = find_source(source, labels, savedir, **stated)
    levels = observe(found, calibration).levels() if precision == "int8" else None
    graph, model = build_model(found, precision, front_end, opset, levels)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    parity = check_parity(content, found, precision, calibration)
    with written_together(path) as folder:
        others = write_golden(folder, path.stem, found)
        (folder / path.name).write_bytes(content)
    beside = tuple(path.parent / other.name for other in others)
    return Exported(path, len(content), parity, graph.num_int8, beside)


def _check_options(
    path: Path,
    precision: str,
    front_end: str,
    opset: int,
    calibration: Sequence[Any],
) -> None:
    newest = onnx.defs.onnx_opset_version()
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision={precision!r}; it is one of {', '.join(PRECISIONS)}"
        )
    if front_end not in FRONT_ENDS:
        raise ValueError(f"front_end={front_end!r}; it is 'in' or 'out'")
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(
            f"opset={opset}; it is from {OLDEST_OPSET} to {newest}, the newest of onnx "
            f"{onnx.__version__}"
        )
    if precision == "int8" and not calibration:
        raise ValueError(
            "int8 needs sounds to find its ranges, but none were given; pass some like "
            "those the model is meant for, or choose int8_weights"
        )
    if precision != "int8" and calibration:
        raise ValueError(
            f"precision={precision!r} needs no calibration; leave it out, or choose "
            "int8"
        )
    check_path(path, ".onnx")
