"""``efficientat export``: writes a model to a file that runs without torch."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from efficientat_plugin.cli.arguments import (
    Commands,
    add_model_facts,
    stated_of,
    whole_number,
)
from efficientat_plugin.cli.inputs import Failures, find_sounds

# Repeated from export.onnx_file, so that importing this module stays fast
NEEDED = {"export": ("onnx", "onnxruntime"), "litert": ("onnx", "litert_torch")}
PRECISIONS = ("fp32", "fp16", "int8_weights", "int8")


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        help="write a model to a file that runs without torch",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name from `efficientat list`, a model folder, the run folder that "
        "holds it, or a weights file",
    )
    parser.add_argument(
        "--format",
        choices=["onnx", "litert"],
        default="onnx",
        help="litert takes the log-mel, in fp32, of clips of one length (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the network: int8_weights stores weights in int8 and "
        "computes in float32; int8 computes convolutions in int8 and needs "
        "--calibration (default: %(default)s)",
    )
    parser.add_argument(
        "--frontend",
        choices=["in", "out"],
        default="in",
        help="in: from waveform to probabilities; out: from log-mel to logits, for "
        "long recordings, whose log-mel the runtime computes once (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--opset",
        type=whole_number,
        default=18,
        help="ONNX operator set (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        type=Path,
        default=(),
        metavar="SOUND",
        help="for int8: files and folders of sounds like those the model is meant for",
    )
    add_model_facts(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="(default: MODEL.onnx in this folder, or MODEL_from_log_mel.onnx without "
        "front end; the name includes a precision other than fp32)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exports the model and prints the files and the difference from PyTorch."""
    is_litert = arguments.format == "litert"
    check_installed("litert" if is_litert else "export")
    if is_litert and arguments.calibration:
        raise ValueError(
            "--calibration is for int8, which litert does not offer; leave it out"
        )
    if is_litert and (arguments.precision, arguments.frontend) != ("fp32", "out"):
        raise ValueError(
            f"--precision {arguments.precision} --frontend {arguments.frontend} was "
            "given; litert offers only fp32 without front end: pass --precision fp32 "
            "--frontend out"
        )
    failures = Failures()
    sounds = find_sounds(arguments.calibration, failures)
    if arguments.calibration and not sounds:
        return failures.conclude(0)

    from efficientat_plugin.cli.load_model import asked_for_options, read_labels

    model, output = arguments.model, arguments.output
    output = output or default_output(
        model, arguments.format, arguments.precision, arguments.frontend
    )
    labels = None if arguments.labels is None else read_labels(arguments.labels)
    stated = stated_of(arguments)
    with asked_for_options():
        if is_litert:
            from efficientat_plugin.export.litert_file import export_litert

            written = export_litert(model, output, labels, **stated)
        else:
            from efficientat_plugin.export.onnx_file import export_onnx

            written = export_onnx(
                model,
                output,
                arguments.precision,
                arguments.frontend,
                arguments.opset,
                sounds,
                labels,
                **stated,
            )
    print(f"{written.path}: {written.num_bytes / 1e6:.2f} MB, {written.parity}")
    if arguments.precision == "int8":
        print(f"{written.num_int8} convolutions compute in int8")
    print(f"next to it: {', '.join(other.name for other in written.others)}")
    return failures.conclude(len(sounds)) if arguments.calibration else 0


def check_installed(extra: str) -> None:
    """Raises a ``ValueError`` if the packages of an extra are not installed."""
    absent = [name for name in NEEDED[extra] if find_spec(name) is None]
    if absent:
        raise ValueError(
            f"{' and '.join(absent)} must be installed for this export; run `pip "
            f"install efficientat_plugin[{extra}]`"
        )


def default_output(model: str, form: str, precision: str, front_end: str) -> Path:
    """Returns the default name of the exported file.

    Example
    -------
    >>> default_output("downloads/mn04_as_mAP_432.pt", "onnx", "int8", "in").name
    'mn04_as_mAP_432_int8.onnx'
    >>> default_output("mn04_as", "onnx", "fp32", "out").name
    'mn04_as_from_log_mel.onnx'
    """
    path = Path(model)
    name = path.stem if path.suffix in (".pt", ".ckpt") else path.name
    if path.is_dir():
        name = path.resolve().name
    suffix = "" if precision == "fp32" else f"_{precision}"
    if form == "litert":  # has only one front end and precision
        return Path(f"{name}.tflite")
    start = "_from_log_mel" if front_end == "out" else ""
    return Path(f"{name}{start}{suffix}.{form}")
