"""The published PaSSTs: their names, files, options and front ends."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.pretrained.download import fetch_file, own_base_url
from efficientat_plugin.pretrained.published import PublishedStudent

RELEASES = "https://github.com/kkoutini/PaSST/releases/download/"


class PublishedTeacher(NamedTuple):
    """A published PaSST, with its options and its front end."""

    name: str
    release: str  # the folder of its file
    file: str
    mean_ap: float | None = None  # percent, on its own data set, as published
    stride: int = 10  # mel bins and frames
    num_frames: int = 998  # mel frames covered by its time positions
    hop_length: int = 320  # samples
    depth: int = 12
    num_classes: int = 527
    trained_on: str = "AudioSet"
    n_mels: int = 128
    embed_dim: int = 768
    num_heads: int = 12
    sample_rate: int = 32000  # Hz
    licence: str = "Apache-2.0"

    def options(self) -> dict[str, Any]:
        """Returns the arguments of the PaSST."""
        names = (
            "num_classes",
            "n_mels",
            "num_frames",
            "embed_dim",
            "depth",
            "num_heads",
        )
        strides = {"frequency_stride": self.stride, "time_stride": self.stride}
        return {name: getattr(self, name) for name in names} | strides

    def front_end(self) -> dict[str, Any]:
        """Returns the arguments of the `LogMel` that it was trained with."""
        names = ("sample_rate", "n_mels", "hop_length")
        return {name: getattr(self, name) for name in names}


def _named(file: str) -> dict[str, Any]:
    """Parses the name of a published file: ...-s12-ap.473 is stride 12, mAP 47.3 %."""
    facts: dict[str, Any] = {}
    if stride := re.search(r"-s(\d+)-", file):
        facts["stride"] = int(stride[1])
    if mean_ap := re.search(r"-ap(\.\d+)", file):
        facts["mean_ap"] = round(100 * float(mean_ap[1]), 2)
    return facts


def _audioset(name: str, release: str, file: str, **options: Any) -> PublishedTeacher:
    """Makes the entry of a PaSST for AudioSet; most files share a prefix."""
    file = f"passt-s-f128{file}" if file.startswith("-") else file
    return PublishedTeacher(name, release, f"{file}.pt", **_named(file) | options)


def _tuned(
    release: str,
    file: str,
    trained_on: str,
    num_classes: int,
    name: str | None = None,
    **options: Any,
) -> PublishedTeacher:
    """Makes the entry of a PaSST for another data set; by default named as its file."""
    options |= {"trained_on": trained_on, "num_classes": num_classes}
    return PublishedTeacher(
        name or file, release, f"{file}.pt", **_named(file) | options
    )


_V1, _V2, _V3 = (f"v0.0.{number}-audioset" for number in (1, 2, 3))
_V7, _OPENMIC = "v.0.0.7-audioset", "openmic2008.passt-u-f128-p16-s10-ap.85"
_HOP_100 = {"hop_length": 100, "num_frames": 3200}
_HOP_160 = {"hop_length": 160, "num_frames": 2000}
_FOLD_ACCURACIES = {1: "967", 2: "977", 3: "959", 4: "987", 5: "962"}  # per mille
_ENTRIES = (
    # Patches overlap, less with larger strides; swa: averaged weights
    _audioset("passt_s_swa_p16_128_ap476", _V1, "-p16-s10-ap.476-swa"),
    _audioset("passt_s_swa_p16_128_ap4761", _V2, "-p16-s10-ap.4761-swa"),
    _audioset("passt_s_p16_128_ap472", _V2, "-p16-s10-ap.472"),
    _audioset("passt_s_p16_s12_128_ap470", _V2, "-p16-s12-ap.470"),
    _audioset("passt_s_swa_p16_s12_128_ap473", _V2, "-p16-s12-ap.473-swa"),
    _audioset("passt_s_p16_s14_128_ap469", _V2, "-p16-s14-ap.469"),
    _audioset("passt_s_swa_p16_s14_128_ap471", _V2, "-p16-s14-ap.471-swa"),
    _audioset("passt_s_p16_s16_128_ap468", _V2, "-p16-s16-ap.468"),
    _audioset("passt_s_swa_p16_s16_128_ap473", _V2, "-p16-s16-ap.473-swa"),
    # Finer time resolution (hop, samples), and longer clips (seconds)
    _audioset(
        "passt_s_swa_f128_stfthop100_p16_s10_ap473",
        _V3,
        "-stfthop100-p16-s10-ap.473-swa",
        **_HOP_100,
    ),
    _audioset(
        "passt_s_swa_f128_stfthop160_p16_s10_ap473",
        _V3,
        "-stfthop160-p16-s10-ap.473-swa",
        **_HOP_160,
    ),
    _audioset(
        "passt-s-f128-20sec-p16-s10-ap474-swa",
        "v0.0.5",
        "-20sec-p16-s10-ap.474-swa",
        num_frames=2000,
    ),
    _audioset(
        "passt-s-f128-30sec-p16-s10-ap473-swa",
        "v0.0.5",
        "-30sec-p16-s10-ap.473-swa",
        num_frames=3000,
    ),
    # Distilled; the light one has 7 blocks
    _audioset("passt_s_kd_p16_128_ap486", "v.0.0.9", "passt-s-kd-ap.486"),
    _audioset("passt_l_kd_p16_128_ap47", "v.0.0.10", "passt-l-kd-ap.47", depth=7),
    # Trained without patchout, and with 600 patches dropped
    _audioset("passt_b_f128_p16_s16_ap_459", _V7, "passt-b-f128-p16-s16-ap.459"),
    _audioset("passt_u600_f128_p16_s16_ap_460", _V7, "passt-u600-f128-p16-s16-ap.460"),
    # Fine-tuned
    _tuned("v0.0.5", "fsd50k-passt-s-f128-p16-s10-ap.655", "FSD50K", 200),
    _tuned("v0.0.5", "fsd50k-passt-s-n-f128-p16-s16-ap.642", "FSD50K", 200),
    _tuned("v0.0.5", "openmic-passt-s-f128-10sec-p16-s10-ap.85", "OpenMIC", 20),
    *(
        _tuned(
            "v0.0.4-openmic",
            _OPENMIC + suffix,
            "OpenMIC",
            20,
            f"openmic2008_passt_u_f128_p16_s10_ap85{suffix.replace('-', '_')}",
            **_HOP_100,
        )
        for suffix in ("", "-swa")
    ),
    *(
        _tuned(
            "v.0.0.6",
            f"esc50-passt-s-n-f128-p16-s10-fold{fold}-acc.{accuracy}",
            f"ESC-50 without fold {fold}",
            50,
        )
        for fold, accuracy in _FOLD_ACCURACIES.items()
    ),
)
TEACHERS: dict[str, PublishedTeacher] = {entry.name: entry for entry in _ENTRIES}


def list_teachers() -> list[str]:
    """Returns the names of the published PaSSTs.

    `load_teacher` loads these and those of `list_students`.

    Returns
    -------
    list of str

    Example
    -------
    >>> "passt_s_swa_p16_128_ap476" in list_teachers()
    True
    """
    return list(TEACHERS)


def find_teacher(source: str | Path) -> PublishedTeacher | None:
    """Finds the entry of a published name, or of a file by its name; else None.

    Example
    -------
    >>> find_teacher("downloads/passt-l-kd-ap.47.pt").depth
    7
    """
    by_file = {entry.file: entry for entry in TEACHERS.values()}
    return TEACHERS.get(str(source)) or by_file.get(Path(source).name)


def fetch_teacher(
    entry: PublishedTeacher, savedir: str | Path | None, base_url: str | None
) -> Path:
    """Returns the file of a published teacher; downloads it if it is missing."""
    own = own_base_url(base_url)
    to_download = PublishedStudent(entry.name, "passt", entry.file, width=1.0)
    return fetch_file(to_download, savedir, own or RELEASES + entry.release)
