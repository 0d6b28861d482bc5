"""The published students: names, files, options and front ends.

Source: the README and the code of github.com/fschmid56/EfficientAT and, for frames,
of github.com/theMoro/EfficientSED and github.com/fschmid56/PretrainedSED.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

BASE_URL = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
FRAME_URL = "https://github.com/theMoro/EfficientSED/releases/download/v0.0.1/"
TEACHERS_OF_EVENTS = (
    "https://github.com/fschmid56/PretrainedSED/releases/download/v0.0.1/"
)


class PublishedStudent(NamedTuple):
    """A published checkpoint, with its options and its front end."""

    name: str
    family: str  # "mn", "dymn", "fmn" or "fpasst"
    file: str
    width: float | None  # None: a transformer
    mean_ap: float | None = None  # percent, AudioSet evaluation, as published
    head: str = "mlp"
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    dynamic_blocks: str = "all"  # of DyMN
    temperature: float = 1.0  # of DyMN's attention over kernels
    num_classes: int = 527
    n_mels: int = 128
    hop_length: int = 320  # samples
    sample_rate: int = 32000  # Hz
    trained_on: str = "AudioSet"  # or "ImageNet", with an untrained class layer
    sha256: str | None = None
    num_bytes: int | None = None  # of the file
    licence: str = "MIT"
    other_files: tuple[str, ...] = ()  # alternative names on the server
    base_url: str = BASE_URL  # of the file
    sequence_model: str = "none"  # of FrameMN
    sequence_dim: int = 256  # of FrameMN
    psds1: float | None = None  # percent, AudioSet strong, mean of runs, as published
    log_mel: Mapping[str, Any] = {}  # further arguments of `LogMel`
    short_clips: str = "repeat"  # how shorter sound is lengthened

    def options(self) -> dict[str, Any]:
        """Returns the arguments of the student."""
        if self.family == "fpasst":
            return {"num_classes": self.num_classes}
        names = ["num_classes", "width", "head"]
        if self.family != "fmn":
            names += ["strides"]
        if self.family == "dymn":
            names += ["dynamic_blocks", "temperature"]
        if self.family == "fmn":
            names += ["sequence_model", "sequence_dim"]
        return {name: getattr(self, name) for name in names}

    def front_end(self) -> dict[str, Any]:
        """Returns the arguments of the `LogMel` that the student was trained with."""
        names = ("sample_rate", "n_mels", "hop_length")
        return {name: getattr(self, name) for name in names} | dict(self.log_mel)


def _mn(
    name: str, width: float, mean_ap: float, file: str | None = None, **options: Any
) -> PublishedStudent:
    """Makes the entry of an MN for AudioSet; most files are named NAME_mAP_###.pt."""
    file = file or f"{name}_mAP_{round(10 * mean_ap)}.pt"
    return PublishedStudent(name, "mn", file, width, mean_ap, **options)


def _dymn(
    name: str,
    width: float,
    mean_ap: float | None = None,
    file: str | None = None,
    **options: Any,
) -> PublishedStudent:
    """Makes the entry of a DyMN for AudioSet; most files are named NAME.pt."""
    file = file or f"{name}.pt"
    return PublishedStudent(name, "dymn", file, width, mean_ap, **options)


def _image(name: str, width: float) -> PublishedStudent:
    """Makes the entry of an MN or DyMN for ImageNet, the start for AudioSet."""
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


# Source: EfficientSED's code. The window is symmetric, as in `LogMel` by default.
FRAME_LOG_MEL = {
    "win_length": 400,  # samples
    "n_fft": 512,  # samples
    "f_max": 7000.0,  # Hz
    "log_floor": 1e-7,
    "log_floor_mode": "clamp",
}
# Widths of FrameMN by their names, channels of their sequence models, and PSDS1 without
# a sequence model and with each
_FRAME_WIDTHS = {"04": 0.4, "06": 0.6, "10": 1.0, "20": 2.0, "30": 3.0}
_FRAME_PSDS1 = {"04": 39.52, "06": 40.75, "10": 42.28, "20": 43.86, "30": 44.24}
_SEQUENCE_PSDS1 = {
    ("04", 104): {"tf": 40.10, "gru": 40.81, "hybrid": 41.37},
    ("06", 160): {"tf": 41.78, "gru": 40.37, "hybrid": 42.54},
    ("10", 128): {"tf": 42.75, "gru": 43.13, "hybrid": 43.45},
    ("10", 256): {"tf": 43.86, "gru": 43.53, "hybrid": 44.05},
    ("10", 512): {"tf": 44.11, "gru": 43.96, "hybrid": 44.32},
    ("10", 1024): {"tf": 44.55, "gru": 44.50, "hybrid": 44.48},
    ("20", 512): {"tf": 45.13, "gru": 44.94, "hybrid": 45.44},
    ("30", 768): {"tf": 45.64, "gru": 45.77, "hybrid": 45.67},
}


def _frame(
    file: str, width: str | None, name: str | None = None, **options: Any
) -> PublishedStudent:
    """Makes the entry of a FrameMN or, without width, a FramePaSST.

    By default its name is its file's, with "_".
    """
    facts: dict[str, Any] = {
        "num_classes": 447,
        "head": "linear",
        "sample_rate": 16000,
        "hop_length": 160,
        "trained_on": "AudioSet strong",
        "base_url": FRAME_URL,
        "log_mel": FRAME_LOG_MEL,
        "short_clips": "zero_pad",
    }
    name = name or file.replace("+", "_").replace("-", "_")
    family = "fpasst" if width is None else "fmn"
    factor = None if width is None else _FRAME_WIDTHS[width]
    return PublishedStudent(name, family, f"{file}.pt", factor, **facts | options)


def _frame_entries() -> Iterator[PublishedStudent]:
    """Yields the published students of sound events, and a teacher."""
    for width, psds1 in _FRAME_PSDS1.items():
        yield _frame(f"fmn{width}_weak", width, trained_on="AudioSet")
        yield _frame(f"fmn{width}_strong", width, psds1=psds1)
    for (width, dim), models in _SEQUENCE_PSDS1.items():
        for model, psds1 in models.items():
            file = f"fmn{width}+{model}-{dim}_strong"
            yield _frame(
                file, width, psds1=psds1, sequence_model=model, sequence_dim=dim
            )
    advanced = "fmn10+tf-256_advanced-kd-weak-strong"
    yield _frame(advanced, "10", sequence_model="tf", psds1=45.25)
    for width in ("06", "10"):  # of the paper about the teachers
        yield _frame(
            f"frame_mn{width}_strong_1",
            width,
            name=f"frame_mn{width}",
            base_url=TEACHERS_OF_EVENTS,
            other_files=(f"frame_mn{width}.pt",),  # the name in its README
        )
    of_teacher: dict[str, Any] = {
        "base_url": TEACHERS_OF_EVENTS,
        "log_mel": FRAME_LOG_MEL | {"periodic_window": True},
    }
    yield _frame("fpasst_weak", None, trained_on="AudioSet", **of_teacher)
    yield _frame(
        "fpasst_strong_1", None, name="fpasst_strong", psds1=45.4, **of_teacher
    )


_FC = "fully_convolutional"
_MN04_SHA256 = "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"
_ENTRIES = (
    # MN at its widths
    _mn("mn01_as", 0.1, 29.8),
    _mn("mn02_as", 0.2, 37.8),
    _mn("mn04_as", 0.4, 43.2, sha256=_MN04_SHA256, num_bytes=4066513),
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
        other_files=(" dymn10_replace_se_as.pt",),  # the name in the published code
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
    # FrameMN and FramePaSST, for sound events
    *_frame_entries(),
)
PUBLISHED: dict[str, PublishedStudent] = {entry.name: entry for entry in _ENTRIES}


def list_students() -> list[str]:
    """Returns the names of the published students.

    Returns
    -------
    list of str

    Example
    -------
    >>> "mn04_as" in list_students()
    True
    """
    return list(PUBLISHED)


def find_published(source: str | Path) -> PublishedStudent | None:
    """Finds the entry of a published name, or of a file by its name; else None.

    Arguments
    ---------
    source : str or Path
        A name of `list_students`, or the path of a file.

    Returns
    -------
    PublishedStudent or None

    Example
    -------
    >>> find_published("downloads/mn04_as_mAP_432.pt").name
    'mn04_as'
    """
    if str(source) in PUBLISHED:
        return PUBLISHED[str(source)]
    by_file = {entry.file: entry for entry in PUBLISHED.values()}
    return by_file.get(Path(source).name)


def published(name: str) -> PublishedStudent:
    """Returns the entry of a published student.

    Arguments
    ---------
    name : str

    Returns
    -------
    PublishedStudent

    Raises
    ------
    ValueError
        For an unknown name; suggests similar ones.

    Example
    -------
    >>> published("mn10_as_hop_5").hop_length
    160
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    near = difflib.get_close_matches(name, PUBLISHED)
    hint = f"did you mean {' or '.join(near)}?" if near else "list_students() has all"
    raise ValueError(f"{name!r} is neither a published model nor a file; {hint}")
