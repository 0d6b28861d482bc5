"""Keeps each folder to one run: a run with other settings needs another folder."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from ruamel.yaml.comments import TaggedScalar
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.run_opts import RunOptions

from efficientat_plugin.support.differences import Difference, differences_of
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.locks import lock_folder
from efficientat_plugin.support.options import option_places, read_yaml, resolved

RUN_FILE = "run.json"

# The keys of a YAML, and of objects in it, that may differ between a run and the
# command that resumes it. A difference in any other key makes another run.
SAME_RESULT = {"output_folder", "save_folder", "train_log", "checkpointer"}  # places
SAME_RESULT |= {"dataset_cache", "pretrained_folder", "savedir", "train_logger"}
# Speed, memory, and what is only reported
SAME_RESULT |= {"num_workers", "pin_memory", "prefetch_factor", "persistent_workers"}
SAME_RESULT |= {"eval_batch_size", "eval_loader", "keep_freed_memory"}
SAME_RESULT |= {"ckpt_interval_minutes", "ckpt_interval_steps", "score_cut_clips"}
# What only refuses a run, or adds another one to it
SAME_RESULT |= {"max_unreadable_share", "min_teacher_coverage"}
SAME_RESULT |= {"compare_without_teacher", "num_seeds", "final"}
# Where data and weights are: their digests are compared instead
SAME_RESULT |= {"dataset", "dataset_config", "transfer_set", "audio_folder"}
SAME_RESULT |= {"load_rows", "sample", "sample_folder", "sample_teacher"}
SAME_RESULT |= {"split", "fold", "teacher_logits", "teacher_name", "events"}
# SpeechBrain's own options: which machine computes, how fast, and what it shows
SAME_RESULT |= {"test_only", "device", "distributed_backend", "distributed_launch"}
SAME_RESULT |= {"data_parallel_backend", "data_parallel_count", "log_config"}
SAME_RESULT |= {"find_unused_parameters", "noprogressbar", "tqdm_colored_bar"}
SAME_RESULT |= {"tqdm_barcolor", "jit", "jit_module_keys", "compile", "compile_mode"}
SAME_RESULT |= {"compile_module_keys", "compile_using_fullgraph"}
SAME_RESULT |= {"compile_using_dynamic_shape_tracing", "profile_training"}
SAME_RESULT |= {"profile_warmup", "profile_steps"}

EPOCHS = ("number_of_epochs", "epoch_counter.limit")  # a higher number trains longer

NAMED = 5  # differences that a refusal spells out


_OCCUPIED: dict[Path, BaseFileLock] = {}


def settings_of(
    hparams_file: str | Path,
    overrides: Mapping[str, Any],
    run_opts: RunOptions | None = None,
) -> dict[str, Any]:
    """Returns the settings of a run as plain values: YAML, overrides and options.

    A value in a group or an object is named like its option. Settings that do not
    change the result (``SAME_RESULT``) are left out.

    Arguments
    ---------
    hparams_file : str or Path
    overrides : Mapping
        Of the YAML's keys.
    run_opts : RunOptions or None
        SpeechBrain's own options; those that were given and differ from their defaults
        are included.

    Returns
    -------
    dict

    Example
    -------
    >>> settings = settings_of("hparams/distil.yaml", {"n_mels": 64})
    >>> settings["n_mels"]
    64
    """
    document = resolved(hparams_file, overrides)
    settings = _plain(document)
    for name, place in option_places(read_yaml(hparams_file)).items():
        node: Any = document[place[0]]
        if len(place) == 1 or not isinstance(node, dict) or SAME_RESULT & {*place}:
            continue
        group, key = place
        settings[name] = _plain(node[key])
        tag = getattr(node, "tag", None)
        if tag is None or tag.value is None:  # arguments of an object stay in it, too
            del settings[group][key]
    settings = {name: value for name, value in settings.items() if value != {}}
    for name in sorted(run_opts.overridden_args if run_opts else ()):
        value = getattr(run_opts, name)
        is_default = value == getattr(RunOptions(), name)
        if name not in SAME_RESULT and (name in settings or not is_default):
            settings[name] = value
    return settings


def _plain(node: Any) -> Any:
    """Converts a node of a YAML to JSON's types; a tag becomes the key of its node."""
    content = node.value if isinstance(node, TaggedScalar) else node
    if isinstance(content, dict):
        kept = {k: v for k, v in content.items() if k not in SAME_RESULT}
        content = {str(name): _plain(value) for name, value in kept.items()}
    elif isinstance(content, list):
        content = [_plain(part) for part in content]
    tag = getattr(node, "tag", None)
    return content if tag is None or tag.value is None else {str(tag.value): content}


def occupy_folder(folder: str | Path) -> None:
    """Locks a folder against other runs, until this process ends, however it ends.

    Two runs would delete each other's unfinished checkpoints. A run that only evaluates
    need not call this.

    Arguments
    ---------
    folder : str or Path
        The run folder; created if needed.

    Raises
    ------
    ValueError
        If another run is using it.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> occupy_folder(folder)
    >>> occupy_folder(folder)  # it is this run's already
    """
    path = Path(folder).resolve()
    if path in _OCCUPIED or not if_main_process():
        return
    _OCCUPIED[path] = lock_folder(path, "name another --output_folder")


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """Reads the settings of the run that a folder holds; None if it has none.

    Example
    -------
    >>> read_run("nowhere") is None
    True
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}, which has the settings of the run, is corrupt; name another "
            "--output_folder"
        )
    return found


def refuse_other_settings(
    folder: str | Path,
    run: Mapping[str, Any],
    keys: Collection[str] | None = None,
    may_train_longer: bool = False,
) -> None:
    """Refuses a command whose settings differ from those of the run in a folder.

    Nothing is written.

    Arguments
    ---------
    folder : str or Path
    run : Mapping
        Settings as plain values: those of ``settings_of``, with digests of the data.
    keys : Collection of str or None
        Top-level settings to compare; None: all.
    may_train_longer : bool
        Whether a higher ``number_of_epochs`` is the same run, if no other setting
        depends on it.

    Raises
    ------
    ValueError
        With both values of the settings that differ.
    """
    found = read_run(folder) or {}
    if keys is not None:
        found, run = ({k: s[k] for k in keys if k in s} for s in (found, run))
    other = differences_of(found, run)
    if may_train_longer and {each.name for each in other} <= set(EPOCHS):
        other = [each for each in other if not _is_more(each)]
    named = _without_consequences(other)
    if named:
        more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
        listed = "; ".join(str(each) for each in named[:NAMED])
        raise ValueError(
            f"{folder} holds another run ({listed}{more}); name another "
            "--output_folder, or give the values of that run to resume it"
        )


def _is_more(difference: Difference) -> bool:
    _, there, here = difference
    return isinstance(there, int) and isinstance(here, int) and here > there


def _without_consequences(differences: Sequence[Difference]) -> list[Difference]:
    """Drops differences in objects that repeat that of a top-level value."""
    top_level = {repr(each[1:]) for each in differences if "." not in each.name}
    named = [
        each
        for each in differences
        if "." not in each.name or repr(each[1:]) not in top_level
    ]
    asked = [each for each in named if not each.name.startswith("__")]
    return asked or named


def claim_folder(
    folder: str | Path,
    run: Mapping[str, Any],
    started: bool,
    may_train_longer: bool = False,
) -> None:
    """Locks a folder and records the run in it; refuses a folder of another run.

    A run that is refused changes nothing in the folder.

    Arguments
    ---------
    folder : str or Path
        The run folder; created if needed.
    run : Mapping
        The settings that identify the run, as plain values.
    started : bool
        Whether the folder has results already, or something to resume from. A run that
        left neither, because of a wrong name or a full disk, does not claim the folder.
    may_train_longer : bool
        As in ``refuse_other_settings``.

    Raises
    ------
    ValueError
        If the folder holds another run, or another run is using it.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> claim_folder(folder, {"lr": 0.1}, started=False)
    >>> claim_folder(folder, {"lr": 0.2}, started=True)
    Traceback (most recent call last):
    ValueError: /... holds another run (lr 0.1 there, 0.2 here); name another ...
    """
    check_folder(folder, run, started, may_train_longer)  # before it gets a lock
    occupy_folder(folder)
    if if_main_process():
        with atomic_file(Path(folder) / RUN_FILE) as file:
            json.dump(dict(run), file, indent=1)


def check_folder(
    folder: str | Path,
    run: Mapping[str, Any],
    started: bool,
    may_train_longer: bool = False,
) -> None:
    """Refuses what ``claim_folder`` would refuse, and writes nothing.

    Raises
    ------
    ValueError
        If the folder holds another run.

    Example
    -------
    >>> check_folder("nowhere", {"lr": 0.1}, started=False)
    """
    if started and read_run(folder) is None:
        raise ValueError(
            f"{folder} has checkpoints, but no run.json with the settings of their "
            "run: it belongs to another recipe, or was only partly deleted; name "
            "another --output_folder, or delete this one"
        )
    if started:
        refuse_other_settings(folder, run, may_train_longer=may_train_longer)
