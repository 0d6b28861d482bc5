"""The published students: names, files, options and front ends.

Source: the README and the code of github.com/fschmid56/EfficientAT.
"""

import difflib
from pathlib import Path
from typing import Any, NamedTuple


class PublishedStudent(NamedTuple):
    """A published checkpoint, with its options and its front end."""

    name: str
    family: str  # "mn" or "dymn"
    file: str
    width: float
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

    def options(self) -> dict[str, Any]:
        """Returns the arguments of the student."""
        names = ["num_classes", "width", "head", "strides"]
        if self.family == "dymn":
            names += ["dynamic_blocks", "temperature"]
        return {name: getattr(self, name) for name in names}

    def front_end(self) -> dict[str, Any]:
        """Returns the arguments of the `LogMel` that the student was trained with."""
        names = ("sample_rate", "n_mels", "hop_length")
        return {name: getattr(self, name) for name in names}


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
