"""Weights for students: the published checkpoints by name, and files of one's own.

An import is whole or refused: names and shapes are compared entry by entry; only the
class layer may stay at its initialisation, where the number of classes differs.
"""

import difflib
import hashlib
import http.client
import inspect
import itertools
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from efficientat_plugin.students.blocks import (
    SE_DIMS,
    BlockSpec,
    Student,
    block_specs,
    hidden_channels,
    nominal_sizes,
    round_channels,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.dynamic import DynamicOptions
from efficientat_plugin.students.mn import MN, gate_sizes

logger = logging.getLogger(__name__)

BASE_URL = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
BASE_URL_VARIABLE = "EFFICIENTAT_BASE_URL"
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 18

FAMILIES: dict[str, type[Student]] = {"mn": MN, "dymn": DyMN}


# ---------------------------------------------------------------- published names


class PublishedStudent(NamedTuple):
    """A published checkpoint, and what must be known to use it."""

    name: str
    family: str  # "mn" or "dymn"
    file: str
    width: float
    mean_ap: float | None = None  # percent, AudioSet evaluation, as printed
    head: str = "mlp"
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    dynamic_blocks: str = "all"  # of DyMN
    temperature: float = 1.0  # of DyMN's attention over kernels
    num_classes: int = 527
    n_mels: int = 128
    hop_length: int = 320  # samples
    sample_rate: int = 32000  # Hz
    trained_on: str = "AudioSet"  # or "ImageNet": the class layer is untrained then
    sha256: str | None = None
    licence: str = "MIT"
    other_files: tuple[str, ...] = ()  # names that a server may have instead

    def options(self) -> dict[str, Any]:
        """Arguments of the student."""
        names = ["num_classes", "width", "head", "strides"]
        if self.family == "dymn":
            names += ["dynamic_blocks", "temperature"]
        return {name: getattr(self, name) for name in names}

    def front_end(self) -> dict[str, Any]:
        """Arguments of the log-mel that the student was trained on."""
        names = ("sample_rate", "n_mels", "hop_length")
        return {name: getattr(self, name) for name in names}


def _mn(
    name: str, width: float, mean_ap: float, file: str | None = None, **options: Any
) -> PublishedStudent:
    """An MN of AudioSet; most files are called by name and mean average precision."""
    file = file or f"{name}_mAP_{round(10 * mean_ap)}.pt"
    return PublishedStudent(name, "mn", file, width, mean_ap, **options)


def _dymn(
    name: str,
    width: float,
    mean_ap: float | None = None,
    file: str | None = None,
    **options: Any,
) -> PublishedStudent:
    """A DyMN of AudioSet; most files are called by the name."""
    file = file or f"{name}.pt"
    return PublishedStudent(name, "dymn", file, width, mean_ap, **options)


def _image(name: str, width: float) -> PublishedStudent:
    """An MN or DyMN of ImageNet: where training on AudioSet began."""
    family = "dymn" if name.startswith("dymn") else "mn"
    temperature = 30.0 if family == "dymn" else 1.0
    return PublishedStudent(
        name,
        family,
        f"{name}.pt",
        width,
        temperature=temperature,
        trained_on="ImageNet",
    )


_FC = "fully_convolutional"
_MN04_SHA256 = "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"
_ENTRIES = (
    # MN at its widths
    _mn("mn01_as", 0.1, 29.8),
    _mn("mn02_as", 0.2, 37.8),
    _mn("mn04_as", 0.4, 43.2, sha256=_MN04_SHA256),
    _mn("mn05_as", 0.5, 44.3),
    _mn("mn10_as", 1.0, 47.1),
    _mn("mn20_as", 2.0, 47.8),
    _mn("mn30_as", 3.0, 48.2),
    _mn("mn40_as", 4.0, 48.4),
    _mn("mn40_as(2)", 4.0, 48.3, "mn40_as_mAP_483.pt"),
    _mn("mn40_as(3)", 4.0, 48.3, "mn40_as_mAP_483(2).pt"),
    # Trained longer, and without ImageNet
    _mn("mn40_as_ext", 4.0, 48.7),
    _mn("mn40_as_ext(2)", 4.0, 48.6, "mn40_as_ext_mAP_486.pt"),
    _mn("mn40_as_ext(3)", 4.0, 48.5, "mn40_as_ext_mAP_485.pt"),
    _mn("mn40_as_no_im_pre", 4.0, 48.3),
    _mn("mn40_as_no_im_pre(2)", 4.0, 48.3, "mn40_as_no_im_pre_mAP_483(2).pt"),
    _mn("mn40_as_no_im_pre(3)", 4.0, 48.2, "mn40_as_no_im_pre_mAP_482.pt"),
    # Other resolutions in time (hop, ms) and in frequency
    _mn("mn10_as_hop_5", 1.0, 47.5, hop_length=160),
    _mn("mn10_as_hop_15", 1.0, 46.3, hop_length=480),
    _mn("mn10_as_hop_20", 1.0, 45.6, hop_length=640),
    _mn("mn10_as_hop_25", 1.0, 44.7, hop_length=800),
    _mn("mn10_as_mels_40", 1.0, 45.3, n_mels=40),
    _mn("mn10_as_mels_64", 1.0, 46.1, n_mels=64),
    _mn("mn10_as_mels_256", 1.0, 47.4, n_mels=256),
    # Another head, and less striding
    _mn("mn10_as_fc", 1.0, 46.5, head=_FC),
    _mn("mn10_as_fc_s2221", 1.0, 46.6, head=_FC, strides=(2, 2, 2, 1)),
    _mn("mn10_as_fc_s2211", 1.0, 46.6, head=_FC, strides=(2, 2, 1, 1)),
    # DyMN
    _dymn("dymn04_as", 0.4, 45.0),
    _dymn("dymn10_as", 1.0, 47.7),
    _dymn("dymn20_as", 2.0, 49.1, "dymn20_as_mAP_493.pt"),
    _dymn("dymn20_as(1)", 2.0, None, "dymn20_as.pt"),
    _dymn("dymn20_as(2)", 2.0, 48.9, "dymn20_as_mAP_489.pt"),
    _dymn("dymn20_as(3)", 2.0, 49.0, "dymn20_as_mAP_490.pt"),
    _dymn("dymn04_replace_se_as", 0.4, dynamic_blocks="replace_se"),
    _dymn(
        "dymn10_replace_se_as",
        1.0,
        dynamic_blocks="replace_se",
        other_files=(" dymn10_replace_se_as.pt",),  # what the published code asks for
    ),
    # ImageNet
    _image("mn01_im", 0.1),
    _image("mn02_im", 0.2),
    _image("mn04_im", 0.4),
    _image("mn05_im", 0.5),
    _image("mn06_im", 0.6),
    _image("mn10_im", 1.0),
    _image("mn10_im_pytorch", 1.0),
    _image("mn20_im", 2.0),
    _image("mn30_im", 3.0),
    _image("mn40_im", 4.0),
    _image("dymn04_im", 0.4),
    _image("dymn10_im", 1.0),
    _image("dymn20_im", 2.0),
)
# Source: the README and the code of github.com/fschmid56/EfficientAT.
PUBLISHED: dict[str, PublishedStudent] = {entry.name: entry for entry in _ENTRIES}


def list_students() -> list[str]:
    """The names of the published students.

    Returns
    -------
    list of str

    Example
    -------
    >>> "mn04_as" in list_students()
    True
    """
    return list(PUBLISHED)


def published(name: str) -> PublishedStudent:
    """What is known of a published student.

    Arguments
    ---------
    name : str

    Returns
    -------
    PublishedStudent

    Raises
    ------
    ValueError
        For an unknown name; says which are near.

    Example
    -------
    >>> published("mn10_as_hop_5").hop_length
    160
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    near = difflib.get_close_matches(name, PUBLISHED)
    hint = f"did you mean {' or '.join(near)}?" if near else "list_students() has all"
    raise ValueError(f"{name!r} is no published student and no file; {hint}")


# ---------------------------------------------------------------- files


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, without running code that the file may hold.

    Arguments
    ---------
    path : Path

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    ValueError
        For a file that is no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # garbage makes the unpickler raise just about anything
        raise ValueError(
            f"{path} holds no weights that torch can load; delete it and download or "
            "save it anew"
        ) from error
    is_state = (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )
    if not is_state:
        what = (
            f"a mapping with {sorted(map(str, content))[:5]}"
            if isinstance(content, Mapping)
            else f"a {type(content).__name__}"
        )
        raise ValueError(
            f"{path} holds {what}, not the names and tensors of a state dict; save "
            "student.state_dict() by itself"
        )
    return dict(content)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _stream(address: str, part: Path) -> None:
    """One body into one file; refuses a body that ends early."""
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
        header = response.headers.get("Content-Length")
        length = None if header is None else int(header)
        with (
            part.open("xb") as file,
            tqdm(
                total=length,
                unit="B",
                unit_scale=True,
                desc=address.rsplit("/", 1)[-1],
                disable=None,
            ) as progress,
        ):
            received = 0
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                progress.update(len(chunk))
    if length is not None and received != length:
        raise OSError(f"{address} ended after {received} of {length} bytes; try again")


def _try_addresses(addresses: list[str], part: Path, target: Path) -> str:
    """The address that had the file; each failure is one sentence."""
    for address in addresses:
        try:
            _stream(address, part)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404 and address != addresses[-1]:
                continue
            raise OSError(
                f"{address} answered {error.code} {error.reason}; check "
                f"{BASE_URL_VARIABLE}, or put {target.name} into {target.parent}"
            ) from error
        except urllib.error.URLError as error:
            raise OSError(
                f"{address} cannot be reached ({error.reason}); put {target.name} into "
                f"{target.parent}, or set {BASE_URL_VARIABLE}"
            ) from error
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise OSError(f"{address} broke off ({error!r}); try again") from error
    return address


def _download(entry: PublishedStudent, target: Path, base_url: str) -> None:
    """Whole and verified, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    addresses = [
        base_url.rstrip("/") + "/" + urllib.parse.quote(file, safe="()")
        for file in (entry.file, *entry.other_files)
    ]
    try:
        address = _try_addresses(addresses, part, target)
        if entry.sha256 is not None and _sha256(part) != entry.sha256:
            raise ValueError(
                f"{address} has not the SHA-256 of {entry.name}, so it is another "
                "file; check the address"
            )
        try:
            read_state(part)
        except ValueError as error:
            raise ValueError(
                f"{address} is no state dict; check the address"
            ) from error
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def fetch(
    name: str, savedir: str | Path | None = None, base_url: str | None = None
) -> Path:
    """The file of a published student, downloaded where it is not there yet.

    Arguments
    ---------
    name : str
    savedir : str or Path or None
        Folder of the file; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        Where the files are; None: the environment's EFFICIENTAT_BASE_URL, or the
        published release.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        Where the server does not answer, has no such file, or stops in between.
    ValueError
        For an unknown name, and for a file that is not what was published.
    """
    entry = published(name)
    folder = Path(savedir or Path(torch.hub.get_dir()) / "efficientat_plugin")
    path = folder / entry.file
    if not path.is_file():
        address = base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL
        _download(entry, path, address)
    elif entry.sha256 is not None and _sha256(path) != entry.sha256:
        raise ValueError(
            f"{path} has not the SHA-256 of {name}; delete it to download it anew"
        )
    return path


def locate(
    source: str | Path, savedir: str | Path | None, base_url: str | None
) -> tuple[PublishedStudent | None, Path]:
    """The entry, where ``source`` is published, and the file of its weights."""
    if isinstance(source, str) and source in PUBLISHED:
        return PUBLISHED[source], fetch(source, savedir, base_url)
    path = Path(source)
    if path.is_file():
        by_file = {entry.file: entry for entry in PUBLISHED.values()}
        return by_file.get(path.name), path
    if isinstance(source, Path) or path.suffix or path.parent != Path("."):
        raise FileNotFoundError(
            f"{source} is no file; give the path of a state dict or a name of "
            "list_students()"
        )
    return published(source), path


# ---------------------------------------------------------------- from keys to options


def _layer_sizes(state: Mapping[str, Tensor], prefix: str) -> tuple[int, int]:
    """Expanded and outgoing channels of a block."""
    norms = {
        int(match[1]): tensor.numel()
        for name, tensor in state.items()
        if (match := re.fullmatch(rf"{re.escape(prefix)}block\.(\d+)\.1\.weight", name))
    }
    if f"{prefix}depth_norm.weight" in state and f"{prefix}proj_norm.weight" in state:
        return (
            state[f"{prefix}depth_norm.weight"].numel(),
            state[f"{prefix}proj_norm.weight"].numel(),
        )
    if len(norms) < 2:
        raise ValueError(f"the state dict has no block {prefix!r}; is it a student's?")
    *_, expanded, out_channels = (norms[index] for index in sorted(norms))
    return expanded, out_channels


def _head_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Head and number of classes; empty for no head that is known."""
    if "classifier.5.bias" in state:
        return {"head": "mlp", "num_classes": state["classifier.5.bias"].numel()}
    if "classifier.1.bias" in state:
        return {"head": _FC, "num_classes": state["classifier.1.bias"].numel()}
    if {"classifier.head_weight", "classifier.subspace_proj.bias"} <= set(state):
        heads = state["classifier.head_weight"].numel()
        outputs = state["classifier.subspace_proj.bias"].numel()
        return {
            "head": "multihead_attention_pooling",
            "attention_heads": heads,
            "num_classes": outputs // (2 * heads),
        }
    return {}


def _widths() -> Iterator[float]:
    """Widths to try, the rounder the earlier."""
    for decimals in (1, 2, 3):
        for numerator in range(1, 8 * 10**decimals + 1):
            if decimals == 1 or numerator % 10:
                yield numerator / 10**decimals


def _width_options(
    state: Mapping[str, Tensor], prefixes: list[str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The roundest width, and the tail, that give the channels and contexts seen."""
    sizes = [_layer_sizes(state, prefix) for prefix in prefixes]
    contexts = [
        state[f"{prefix}context_gen.joint_norm.weight"].numel()
        if f"{prefix}context_gen.joint_norm.weight" in state
        else None
        for prefix in prefixes
    ]
    dynamic = DynamicOptions(
        **{k: v for k, v in overrides.items() if k in DynamicOptions._fields}
    )
    hidden = state.get("classifier.2.bias")
    channels_fit = False
    for reduced_tail, width in itertools.product((False, True), _widths()):
        last = 480 if reduced_tail else 960
        if round_channels(last * width) != sizes[-1][0]:
            continue
        specs = block_specs(width, (2, 2, 2, 2), False, reduced_tail)
        if sizes != [(spec.expanded, spec.out_channels) for spec in specs]:
            continue
        if hidden is not None and hidden.numel() != hidden_channels(
            width, reduced_tail
        ):
            continue
        channels_fit = True
        if all(
            seen in (None, dynamic.context_size(spec.expanded, width))
            for seen, spec in zip(contexts, specs, strict=True)
        ):
            return {"width": width, "reduced_tail": reduced_tail}
    if channels_fit:
        raise ValueError(
            f"the state dict has contexts of {contexts} channels, which "
            f"context_ratio={dynamic.context_ratio}, min_context_size="
            f"{dynamic.min_context_size} and max_context_size="
            f"{dynamic.max_context_size} do not give; pass what it was trained with"
        )
    raise ValueError(
        f"no width gives the state dict's channels {sizes}; is it a student's?"
    )


def _squeeze_excite_options(
    state: Mapping[str, Tensor], specs: list[BlockSpec], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Which dimensions squeeze-excite gates, and how narrow it is."""
    pattern = re.compile(
        r"features\.(\d+)\.block\.\d+\.conc_se_layers\.(\d+)\.fc1\.weight"
    )
    seen: dict[int, dict[int, tuple[int, int]]] = {}
    for name, weight in state.items():
        if (match := pattern.fullmatch(name)) and weight.ndim == 2:
            squeezed, size = weight.shape
            seen.setdefault(int(match[1]) - 1, {})[int(match[2])] = (size, squeezed)
    if not seen:
        return {"se_dims": "none"}
    n_mels, n_frames = overrides.get("n_mels", 128), overrides.get("n_frames", 1000)
    sizes = nominal_sizes(specs, n_mels, n_frames)
    built = {
        block: [layers[number] for number in sorted(layers)]
        for block, layers in seen.items()
    }
    count = max(len(layers) for layers in built.values())
    ratios = (4, *(ratio for ratio in range(1, 65) if ratio != 4))
    for letters in itertools.permutations(SE_DIMS, count):
        gated = {
            block: list(
                gate_sizes(specs[block], sizes[block], "".join(letters)).values()
            )
            for block in built
        }
        for ratio in ratios:
            if all(
                layers
                == [(size, round_channels(size // ratio)) for size in gated[block]]
                for block, layers in built.items()
            ):
                return {"se_dims": "".join(letters), "se_r": ratio}
    raise ValueError(
        f"n_mels={n_mels} and n_frames={n_frames} do not give the sizes of the state "
        "dict's squeeze-excite; pass those, and the strides, that it was trained with"
    )


def infer_options(
    state: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Family and arguments of the student that a state dict was saved from.

    What no state dict can tell (strides, dilation, how squeeze-excites are fused,
    whether coordinate attention was used) is in ``overrides`` or at its default.

    Arguments
    ---------
    state : mapping of str to Tensor
    overrides : mapping
        Arguments that are known.

    Returns
    -------
    family : str
    options : dict

    Raises
    ------
    ValueError
        For a state dict of something else.
    """
    if "features.0.0.weight" in state:
        family, prefixes = "mn", [f"features.{index}." for index in range(1, 16)]
    elif "in_c.0.weight" in state:
        family, prefixes = "dymn", [f"layers.{index}." for index in range(15)]
    else:
        raise ValueError(
            f"the state dict is no student's: it begins with {list(state)[:3]}, where "
            "MN has features.0.0.weight and DyMN in_c.0.weight"
        )
    options = _head_options(state) | _width_options(state, prefixes, overrides)
    if family == "mn":
        specs = block_specs(
            options["width"],
            overrides.get("strides", (2, 2, 2, 2)),
            False,
            options["reduced_tail"],
        )
        return family, options | _squeeze_excite_options(state, specs, overrides)
    # Block 3 is dynamic in every DyMN, block 0 only where all are.
    first_is_static = "layers.0.block.0.0.weight" in state
    options["dynamic_blocks"] = "replace_se" if first_is_static else "all"
    kernels = state.get("layers.3.depth_conv.residuals.0.bias")
    options["use_dyconv"] = kernels is not None
    if kernels is not None:
        options["dyconv_k"] = kernels.numel()
    lines = state.get("layers.3.depth_act.lambdas")
    options["use_dyrelu"] = lines is not None
    if lines is not None:
        options["dyrelu_k"] = lines.numel() // 2
    return family, options


# ---------------------------------------------------------------- filling a student


def _described(state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> str:
    """A state dict in a few words, for messages."""
    try:
        family, options = infer_options(state, overrides)
    except (ValueError, TypeError):
        return "not of a known student"
    return f"of {FAMILIES[family].__name__} of width {options['width']:g}"


def _fill(student: Student, state: Mapping[str, Tensor], origin: str) -> list[str]:
    """All of a state dict into a student; returns what had to stay as it was."""
    own = student.state_dict()
    classes = _head_options(state).get("num_classes")
    kept: list[str] = []
    if classes is not None and classes != student.num_classes:
        layers = getattr(student.classifier, "class_layers", ())
        prefixes = tuple(f"classifier.{layer}." for layer in layers)
        kept = [name for name in own if name.startswith(prefixes) and name in state]
    merged = dict(state) | {name: own[name] for name in kept}
    optional = {"temperature"}  # published checkpoints have none
    missing = [name for name in own if name not in merged and name not in optional]
    unexpected = [name for name in merged if name not in own]
    reshaped = [
        f"{name} is {tuple(merged[name].shape)} there and {tuple(own[name].shape)} here"
        for name in own
        if name in merged and merged[name].shape != own[name].shape
    ]
    if missing or unexpected or reshaped:
        differences = [
            f"{len(names)} entries {what}, as {names[0]}"
            for what, names in (
                ("are missing", missing),
                ("are unexpected", unexpected),
                ("differ in shape", reshaped),
            )
            if names
        ]
        raise ValueError(
            f"{origin} does not fit the student: it is {_described(state, {})}, the "
            f"student a {type(student).__name__} of width {student.width:g} "
            f"({'; '.join(differences)}); build the student with the same options"
        )
    student.load_state_dict(merged, strict=True)
    if kept:
        logger.warning(
            "%s has %d classes and the student %d: %s stay at their initialisation",
            origin,
            classes,
            student.num_classes,
            ", ".join(kept),
        )
    return kept


def load_published_state(
    student: Student,
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
) -> list[str]:
    """Fills a student with published weights, or those of a file, in place.

    The temperature of a DyMN becomes that of the weights, where it is known.

    Arguments
    ---------
    student : Student
        Built with the options of the weights; the number of classes may differ.
    source : str or Path
        A name of `list_students`, or a file.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        Where the files are; see `fetch`.

    Returns
    -------
    list of str
        Entries left at their initialisation, because the number of classes differs.

    Raises
    ------
    OSError
        Where a download fails or there is no such file.
    ValueError
        For an unknown name, a file that is no state dict, and one that does not fit.
    """
    entry, path = locate(source, savedir, base_url)
    state = read_state(path)
    kept = _fill(student, state, str(source))
    if entry is not None and isinstance(student, DyMN) and "temperature" not in state:
        student.set_temperature(entry.temperature)
    return kept


# Arguments of LogMel: what `overrides` may say of the front end
FRONT_END = (
    "sample_rate",
    "n_mels",
    "win_length",
    "hop_length",
    "n_fft",
    "f_min",
    "f_max",
    "f_min_jitter",
    "f_max_jitter",
    "log_floor",
    "log_floor_mode",
    "periodic_window",
)
DEFAULT_FRONT_END = {"sample_rate": 32000, "n_mels": 128, "hop_length": 320}


def _check_overrides(family: str, overrides: Mapping[str, Any]) -> set[str]:
    """The legal arguments of a family; refuses others."""
    options = set(inspect.signature(FAMILIES[family]).parameters)
    for name in overrides:
        if name not in options and name not in FRONT_END:
            near = difflib.get_close_matches(name, [*options, *FRONT_END], n=1)
            hint = f"did you mean {near[0]}?" if near else "see its documentation"
            raise ValueError(
                f"{name} is no option of {FAMILIES[family].__name__} or LogMel; {hint}"
            )
    return options


def load_student(
    source: str | Path,
    num_classes: int | None = None,
    savedir: str | Path | None = None,
    base_url: str | None = None,
    **overrides: Any,
) -> Student:
    """A student with its weights, ready to score.

    Arguments
    ---------
    source : str or Path
        A name of `list_students`, downloaded once; or a file with a state dict. Of
        a file with a published name the options are known; else family, width, head
        and the like follow from names and shapes.
    num_classes : int or None
        K; None: as many as the weights have, 527 of the published ones. Another
        number leaves the class layer at its initialisation, and warns.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        Where the files are; see `fetch`.
    **overrides
        Arguments of the student or of `LogMel` that the source does not tell or
        that shall differ, e.g. ``strides``, ``dropout``, ``hop_length``.

    Returns
    -------
    Student
        An `MN` or `DyMN` in evaluation mode; its ``front_end`` has the arguments of
        the `LogMel` that goes with it.

    Raises
    ------
    OSError
        Where a download fails or there is no such file.
    ValueError
        For an unknown name or option, a file that is no state dict, and one that
        does not fit.

    Example
    -------
    >>> student = load_student("mn04_as")  # doctest: +SKIP
    >>> student.front_end  # doctest: +SKIP
    {'sample_rate': 32000, 'n_mels': 128, 'hop_length': 320}
    """
    entry, path = locate(source, savedir, base_url)
    state = read_state(path)
    if entry is not None:
        family, options, front_end = entry.family, entry.options(), entry.front_end()
    else:
        family, options = infer_options(state, overrides)
        front_end = dict(DEFAULT_FRONT_END)
    legal = _check_overrides(family, overrides)
    front_end |= {k: v for k, v in overrides.items() if k in FRONT_END}
    options |= {k: v for k, v in (front_end | overrides).items() if k in legal}
    if num_classes is not None:
        options["num_classes"] = num_classes
    student = FAMILIES[family](**options)
    kept = _fill(student, state, str(source))
    if isinstance(student, DyMN) and "temperature" in overrides:
        student.set_temperature(overrides["temperature"])
    if entry is not None and entry.trained_on == "ImageNet" and not kept:
        logger.warning("%s comes from ImageNet: its class layer is untrained", source)
    student.front_end = front_end
    return student.eval()
