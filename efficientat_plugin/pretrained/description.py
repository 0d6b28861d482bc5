"""Finds out what is needed to use weights: front end, classes, length of clips.

The same weights behind another front end are another model, and a file of weights does
not contain its front end, its classes or the length of its clips. They are known from a
published name, the YAML of a model folder, or the description that a run saves with
each checkpoint. For any other file they must be stated; nothing is guessed.
"""

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.contracts import SHORT_CLIPS, TARGETS
from efficientat_plugin.data.labels import (
    LabelTable,
    audioset_labels,
    audioset_strong_labels,
)
from efficientat_plugin.pretrained.download import fetch
from efficientat_plugin.pretrained.published import (
    PUBLISHED,
    PublishedStudent,
    find_published,
    published,
)
from efficientat_plugin.pretrained.published_passt import (
    TEACHERS,
    PublishedTeacher,
    fetch_teacher,
    find_teacher,
)
from efficientat_plugin.pretrained.safe_yaml import (
    plain_values,
    read_settings,
    tag_of,
)
from efficientat_plugin.support.files import sha256_of
from efficientat_plugin.support.plain_text import shown
from efficientat_plugin.support.yaml_text import Refused, read_text

HYPERPARAMS = "hyperparams.yaml"
WEIGHTS = "student.ckpt"
DESCRIPTION = "_hyperparams"  # student_hyperparams.ckpt describes student.ckpt
# Arguments of LogMel
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
TO_STATE = ("n_mels", "hop_length")  # a stated front end needs both
# How to state it, in Python and on the command line
IN_PYTHON = {
    "front end": "n_mels=... and hop_length=...",
    "length of clips": "clip_seconds=...",
    "classes": "labels=LabelTable(...) or labels=audioset_labels()",
}
ON_COMMAND_LINE = {
    "front end": "--front-end n_mels=...,hop_length=...",
    "length of clips": "--clip-seconds SECONDS",
    "classes": "--labels CSV or --labels audioset",
}
AST_CONFIG = "config.json"
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
OF_A_MODEL = {".bin", ".ckpt", ".csv", ".pt", ".pth", ".safetensors", ".yaml"}


def _listed(names: Sequence[str]) -> str:
    """Joins names as in a sentence.

    Example
    -------
    >>> _listed(["front end", "length of clips", "classes"])
    'front end, length of clips and classes'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


class Unstated(ValueError):
    """Raised if something needed to use weights is neither known nor stated.

    Arguments
    ---------
    source : str
        The weights.
    unknown : Sequence[str]
        Some of "front end", "length of clips" and "classes".
    """

    def __init__(self, source: str, unknown: Sequence[str]) -> None:
        self.source, self.unknown = source, tuple(unknown)
        super().__init__(self.sentence(IN_PYTHON))

    def sentence(self, ways: Mapping[str, str]) -> str:
        """Says what is unknown, and by which options to state it."""
        how = _listed([ways[name] for name in self.unknown])
        return (
            f"{self.source} does not state its {_listed(self.unknown)}; pass {how}, or "
            "give the model folder or the checkpoint folder of its run, which do"
        )


class Described(NamedTuple):
    """A file of weights, and what is known about it; None and {}: unknown."""

    source: str  # as the user gave it
    path: Path  # the file
    entry: PublishedStudent | PublishedTeacher | None = None
    yaml: Path | None = None  # describes the file
    front_end: Mapping[str, Any] | None = None  # arguments of LogMel
    options: Mapping[str, Any] = {}  # arguments of the network, from the YAML
    labels: LabelTable | None = None
    target: str | None = None  # "multilabel" or "multiclass"
    clip_seconds: float | None = None
    short_clips: str | None = None  # "repeat", "zero_pad" or "as_is"
    event_options: Mapping[str, Any] = {}  # as in `TrainedModel`

    def front_end_with(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `LogMel`: the known ones, updated by those stated.

        Raises
        ------
        Unstated
            If none are known, and ``n_mels`` and ``hop_length`` are not both stated.
        """
        given = {name: value for name, value in stated.items() if name in FRONT_END}
        if self.front_end is None and not states_front_end(stated):
            raise Unstated(self.source, ["front end"])
        return {"sample_rate": 32000, **(self.front_end or {}), **given}

    @contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Turns the errors of a corrupt description into a sentence that names it."""
        try:
            yield
        except Exception as error:
            clear = (FileNotFoundError, Refused, Unstated)
            if self.yaml is None or isinstance(error, clear):
                raise
            what = shown(" ".join(str(error).split())[:300])
            raise ValueError(f"{self.yaml} is not a tagger's: {what}") from error


def states_front_end(stated: Iterable[str]) -> bool:
    """Whether the stated arguments suffice for a front end.

    Example
    -------
    >>> states_front_end({"n_mels": 64, "hop_length": 640})
    True
    >>> states_front_end({"hop_length": 640})
    False
    """
    return set(TO_STATE) <= set(stated)


def describe(
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
) -> Described:
    """Finds weights, and what is known about them.

    Arguments
    ---------
    source : str or Path
        A name of `list_students` or `list_teachers`, downloaded once; a model folder
        or its run folder; or a file of weights.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        URL of the published files; None: as in `fetch`.

    Returns
    -------
    Described

    Raises
    ------
    OSError
        If a download fails, or the file does not exist.
    ValueError
        For an unknown name, a folder without a model, or an unreadable description.

    Example
    -------
    >>> describe("runs/1/save/CKPT+2026/student.ckpt").front_end  # doctest: +SKIP
    {'sample_rate': 32000, 'n_mels': 64, 'hop_length': 640, ...}
    """
    known = locate(source, savedir, base_url)
    if known.entry is not None and not os.path.isfile(source):  # a published name
        return _as_published(known)
    beside = _yaml_beside(known.path)
    if beside is not None:
        return with_yaml(known._replace(yaml=beside))
    return known if known.entry is None else _as_published(known)


def locate(
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
) -> Described:
    """Like `describe`, but finds only the file and whether it is a published one."""
    name = str(source)
    if isinstance(source, str) and name in PUBLISHED:
        return Described(name, fetch(name, savedir, base_url), PUBLISHED[name])
    if name in TEACHERS:
        path = fetch_teacher(TEACHERS[name], savedir, base_url)
        return Described(name, path, TEACHERS[name])
    if os.path.isdir(name):
        path = model_folder_of(source) / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; copy the folder again")
        refuse_links_out(path.parent, [HYPERPARAMS, WEIGHTS])
        return Described(name, path)
    path = Path(source)
    if os.path.isfile(name):
        return Described(name, path, find_published(path) or find_teacher(path))
    if isinstance(source, Path) or path.suffix or path.parent != Path("."):
        raise FileNotFoundError(
            f"{source} is not a file; give the path of a state dict or a name of "
            "list_students()"
        )
    return Described(name, path, published(name))  # raises with similar names


def not_found(source: str | Path, names: list[str]) -> Exception:
    """Returns the error to raise if a source neither exists nor is published."""
    path = Path(source)
    if os.path.isdir(source):
        return FileNotFoundError(
            f"the folder {source} has no model in it: neither {HYPERPARAMS}, as a "
            f"model folder has, nor {AST_CONFIG}, as an AST has; give another folder"
        )
    if path.suffix in WEIGHT_FILES or path.parent != Path("."):
        return FileNotFoundError(
            f"{source} is neither file nor folder; give the path of a state dict, a "
            "name of list_teachers() or list_students(), or an AST on the hub"
        )
    near = difflib.get_close_matches(str(source), names)
    hint = f"did you mean {' or '.join(near)}?" if near else "list_teachers() has all"
    return ValueError(
        f"{str(source)!r} is neither a published teacher nor a file; {hint}"
    )


def find_model_folder(source: str | Path) -> Path | None:
    """Finds the model folder at a path: the path itself, or the model of a run folder.

    Arguments
    ---------
    source : str or Path
        Any source, including a name that is not a path.

    Returns
    -------
    Path or None
        None if it is neither a model folder nor a run folder.

    Raises
    ------
    FileNotFoundError
        For a run folder without a model, or with several.

    Example
    -------
    >>> find_model_folder("results/quickstart/1234")  # doctest: +SKIP
    PosixPath('results/quickstart/1234/model')
    >>> find_model_folder("mn10_as")
    """
    folder = Path(source)
    if not os.path.isdir(folder):  # unlike Path.is_dir, accepts names of any length
        return None
    for path in (folder, folder / "model"):
        if os.path.isfile(path / HYPERPARAMS) and _builds_a_model(path / HYPERPARAMS):
            return path
    models = sorted(folder.glob(f"*/model/{HYPERPARAMS}"))
    if models:  # of cross-validation folds, or of students without a teacher
        names = ", ".join(str(path.parent) for path in models[:3])
        raise FileNotFoundError(
            f"{folder} is not a model folder, but has {len(models)} in it; give one "
            f"of them, such as {names}"
        )
    if (folder / HYPERPARAMS).is_file() or (folder / "save").is_dir():
        raise FileNotFoundError(
            f"{folder} is a run folder without a model yet; let the run finish, or "
            "give one of its checkpoints, save/CKPT.../student.ckpt"
        )
    return None


def model_folder_of(folder: str | Path) -> Path:
    """Like `find_model_folder`, but raises an error if there is none."""
    found = find_model_folder(folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder} is not a model folder: it has no {HYPERPARAMS}"
        )
    return found


def refuse_links_out(folder: Path, names: Iterable[str]) -> None:
    """Refuses files of a model folder that are links to files elsewhere.

    Such links would let whoever packed the folder choose which file of this machine is
    read. In the hub's cache, links to its own ``blobs``, beside ``snapshots``, are
    allowed.

    Arguments
    ---------
    folder : Path
    names : iterable of str
        Files in it.

    Raises
    ------
    Refused
    """
    whole = folder.resolve()
    roots = [whole]
    for place in (whole, *whole.parents):
        if place.parent.name == "snapshots":
            roots.append(place.parents[1] / "blobs")
    for name in names:
        try:
            leads_to = (whole / name).resolve()
        except (OSError, RuntimeError) as error:  # depends on the Python version
            raise Refused(
                f"{folder / name} is a link to itself; give a file"
            ) from error
        if not any(leads_to.is_relative_to(root) for root in roots):
            raise Refused(
                f"{folder / name} is a link that leads out of its folder, to "
                f"{leads_to}; if you want that file, copy it into the folder"
            )


def _builds_a_model(yaml: Path) -> bool:
    """Whether a YAML builds a model; a run folder has one that does not."""
    try:
        keys = {line.split(":")[0] for line in read_text(yaml).splitlines()}
    except (OSError, ValueError):
        return True  # its reader reports what is wrong
    return "pretrainer" in keys or "output_folder" not in keys


def _as_published(known: Described) -> Described:
    entry: Any = known.entry
    tables = {527: audioset_labels, 447: audioset_strong_labels}
    table = tables.get(entry.num_classes)
    # A transformer has as many time positions as its clips need.
    frames = getattr(entry, "num_frames", None)
    seconds = 10.0 if frames is None else frames * entry.hop_length / entry.sample_rate
    return known._replace(
        front_end=entry.front_end(),
        labels=None if table is None else table(),
        target="multilabel",
        clip_seconds=float(round(seconds)),
        short_clips=getattr(entry, "short_clips", "repeat"),
    )


def _yaml_beside(path: Path) -> Path | None:
    """Finds the YAML that describes a checkpoint file or a model folder's weights."""
    beside = path.with_name(f"{path.stem}{DESCRIPTION}{path.suffix}")
    if beside.is_file():
        return beside
    yaml = path.with_name(HYPERPARAMS)
    is_model = path.name == WEIGHTS and yaml.is_file() and _builds_a_model(yaml)
    return yaml if is_model else None


def with_yaml(known: Described, only_known_parts: bool = False) -> Described:
    """Adds the settings of its YAML, of which no object is built."""
    yaml: Any = known.yaml
    with known.naming_errors():
        settings = read_settings(yaml, only_known_parts)
        try:
            return _with_settings(known, settings)
        except KeyError as error:
            raise Refused(f"{yaml} has no {error}; is it that of a tagger?") from error


def _with_settings(described: Described, settings: Mapping[str, Any]) -> Described:
    for name, legal in (("target", TARGETS), ("short_clips", SHORT_CLIPS)):
        if settings[name] not in legal:
            raise ValueError(
                f"it has {name}={settings[name]!r:.80}, not one of {', '.join(legal)}"
            )
    front_end = plain_values(_part(settings, "log_mel"), settings)
    options = plain_values(_part(settings, "student"), settings)
    return described._replace(
        front_end={k: v for k, v in front_end.items() if k in FRONT_END},
        # n_mels is the front end's; the network takes it from there
        options={k: v for k, v in options.items() if k not in FRONT_END},
        labels=_labels_of(settings),
        target=str(settings["target"]),
        clip_seconds=float(settings["clip_seconds"]),
        short_clips=str(settings["short_clips"]),
        event_options=_event_options_of(settings),
    )


def _event_options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns numbers, and lists of them; older folders have none."""
    if "event_options" not in settings:
        return {}
    options = plain_values(settings["event_options"], settings)
    return {
        str(name): [*map(float, each)] if isinstance(each, list) else float(each)
        for name, each in options.items()
    }


def _part(settings: Mapping[str, Any], name: str) -> Any:
    """Finds a part by its name, or among the modules of a YAML written by hand."""
    return settings[name] if name in settings else settings["modules"][name]


def _labels_of(settings: Mapping[str, Any]) -> LabelTable:
    labels = settings["labels"]
    if tag_of(labels).endswith("audioset_labels"):
        return audioset_labels()
    columns = plain_values(labels, settings)
    return LabelTable(columns["mids"], columns["names"])


def identity_of_weights(source: str | Path | None) -> str | None:
    """Identifies weights by a published name or a digest of the files.

    It does not depend on their path, so a run can be resumed after they were moved.

    Arguments
    ---------
    source : str, Path or None
        A name, a file, or a folder.

    Returns
    -------
    str or None

    Example
    -------
    >>> identity_of_weights("mn10_as")
    'mn10_as'
    """
    if source is None or not Path(source).exists():
        return None if source is None else str(source)
    path = Path(source)
    if path.is_file():
        return f"a file (digest {sha256_of(path)[:8]})"
    path = find_model_folder(path) or path  # of a run folder, its model
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in OF_A_MODEL:
            digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return f"a folder (digest {digest.hexdigest()[:8]})"
