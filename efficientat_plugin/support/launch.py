"""Starts a recipe: its arguments, its YAML, its processes, its folder."""

import atexit
import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from speechbrain.utils.distributed import ddp_init_group, if_main_process
from speechbrain.utils.run_opts import RunOptions
from tqdm import tqdm

from efficientat_plugin.support.console import (
    escape_what_stdout_lacks,
    logging_to_console,
)
from efficientat_plugin.support.devices import check_device
from efficientat_plugin.support.interruptions import interruptible
from efficientat_plugin.support.memory import keep_freed_memory
from efficientat_plugin.support.options import (
    in_a_line,
    nested,
    option_places,
    read_options,
    read_yaml,
    unknown_option,
    unset_placeholders,
)
from efficientat_plugin.support.plain_text import shown
from efficientat_plugin.support.run_folder import (
    check_folder,
    claim_folder,
    occupy_folder,
    settings_of,
)

__all__ = [
    "check_folder",
    "claim_folder",
    "load_hparams",
    "occupy_folder",
    "on_available_hardware",
    "parse_and_join",
    "settings_of",
    "start",
    "world_size",
    "yaml_to_save",
]

logger = logging.getLogger(__name__)

REFUSALS = (ImportError, OSError, ValueError)  # errors whose message is enough
EXIT_SECONDS = 10  # for the exit functions of an interrupted run
NO_SHARED_MEMORY = (
    "loader workers pass clips on in shared memory (/dev/shm), which is too small "
    "here; pass --num_workers 0, or a smaller --batch_size, or start the container "
    "with a larger --shm-size"
)


def start(
    main: Callable[[list[str]], None],
    resumes: bool = True,
    refusals: tuple[type[Exception], ...] = (),
) -> None:
    """Runs a recipe's ``main`` with the arguments of the command line.

    Log messages appear on the console from here on. An ImportError, OSError or
    ValueError ends the run with its message; its traceback is in log.txt only. Ctrl-C
    and SIGTERM end it with a line that tells how to resume. Control characters in an
    error message are escaped, since names in untrusted data may contain some.

    Arguments
    ---------
    main : Callable
        Takes the arguments, without the program's name.
    resumes : bool
        Whether rerunning the command resumes; otherwise it starts over.
    refusals : tuple of exception classes
        Other errors whose message is enough.
    """
    logging.raiseExceptions = False  # report a full disk once, not for each log line
    escape_what_stdout_lacks()
    # Other processes of a run would print the same again.
    console = logging_to_console("stdout") if if_main_process() else nullcontext()
    with interruptible() as arrived, console:
        try:
            main(sys.argv[1:])
            if torch.distributed.is_initialized():  # its threads may abort an exit
                torch.distributed.destroy_process_group()
        except BaseException as error:
            again = "resume" if resumes else "start over"
            if not arrived and _lost_another_process(error):
                logger.debug("Lost another process:", exc_info=True)  # in log.txt only
                sys.exit(
                    "Another process of this run has ended, with an error above, or "
                    f"was killed; rerun the same command to {again}."
                )
            if not arrived and _lacks_shared_memory(error):
                logger.debug("Too little shared memory:", exc_info=True)
                sys.exit(NO_SHARED_MEMORY)
            if not arrived and isinstance(error, (*REFUSALS, *refusals)):
                logger.debug("Where the run stopped:", exc_info=True)  # in log.txt only
                sys.exit(_escaped(str(error)))
            if not arrived and not isinstance(error, KeyboardInterrupt):
                if isinstance(error, SystemExit) and isinstance(error.code, str):
                    error.code = _escaped(error.code)
                raise
            # An interruption, or an error that follows from interrupted workers
            number = arrived[0] if arrived else signal.SIGINT
            _abandon(error, 128 + number)
            what = "Terminated" if number == signal.SIGTERM else "Interrupted"
            if if_main_process():
                print(f"\n{what}; rerun the same command to {again}.", file=sys.stderr)
            sys.exit(128 + number)


_abandoned: list[BaseException] = []


def _abandon(error: BaseException, status: int) -> None:
    """Ends the work of an interrupted run, without what might wait for ever.

    A signal may have come between the moment when a library took a lock and the one
    when it remembers to release it. Then a destructor that needs the lock, as that of a
    loader does, never ends, so the frames of the run live until the process has begun
    to exit, when such destructors do nothing. An exit function that needs it would not
    end either, so all of them together have `EXIT_SECONDS`.
    """
    if hasattr(signal, "SIGCHLD"):  # torch's handler raises as workers end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _abandoned.append(error)
    for worker in multiprocessing.active_children():
        worker.kill()
    for bar in list(getattr(tqdm, "_instances", ())):  # or it is drawn again later
        bar.close()
    atexit.register(_end_soon, status)


def _end_soon(status: int) -> None:
    """Ends the process with ``status`` if its exit functions take too long."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(status))
        signal.alarm(EXIT_SECONDS)


def _escaped(message: str) -> str:
    """Escapes control characters, except line breaks."""
    return "\n".join(map(shown, message.split("\n")))


def _lacks_shared_memory(error: BaseException) -> bool:
    """Whether torch reports too little shared memory for the batches of workers."""
    return isinstance(error, RuntimeError) and "shared memory" in str(error)


def _lost_another_process(error: BaseException) -> bool:
    """Whether the error means that the other processes no longer respond."""
    is_of_network = isinstance(error, torch.distributed.DistError)
    return world_size() > 1 and (is_of_network or "gloo" in str(error))


def parse_and_join(argv: list[str]) -> tuple[str, Any, dict[str, Any]]:
    """Reads a command line, as ``read_options`` does, and joins the process group.

    Arguments
    ---------
    argv : list of str
        Without the program's name.

    Returns
    -------
    str, RunOptions, dict

    Example
    -------
    >>> path, options, overrides = parse_and_join(
    ...     ["hparams/distil.yaml", "--width", "0.4"]
    ... )
    >>> overrides
    {'width': 0.4}
    """
    hparams_file, run_opts, overrides = read_options(argv)
    try:
        check_device(run_opts.device or "cpu")
    except ValueError as error:
        sys.exit(f"--device: {error}")
    run_opts = on_available_hardware(run_opts)
    ddp_init_group(run_opts)
    return hparams_file, run_opts, overrides


def on_available_hardware(run_opts: Any) -> Any:
    """Chooses gloo for `torchrun` without GPUs, unless another backend is given."""
    given = run_opts.overridden_args
    on_gpu = torch.cuda.is_available() and run_opts.device != "cpu"
    if on_gpu or "distributed_backend" in given:
        return run_opts
    return dataclasses.replace(
        run_opts,
        distributed_backend="gloo",
        overridden_args=given | {"distributed_backend"},
    )


def load_hparams(hparams_file: str | Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Builds the objects of a YAML, and applies its ``keep_freed_memory``.

    Arguments
    ---------
    hparams_file : str or Path
    overrides : dict
        Values by option: ``width``, wherever it is in the YAML.

    Returns
    -------
    dict
        As in the YAML, with its groups. A key that is not there ends the program with
        a sentence.

    Raises
    ------
    SystemExit
        With a sentence: for a file that is not a YAML, options that the YAML does not
        have, and values that its objects refuse.
    """
    # On import, it warns that torchvision is missing; its figures are never drawn.
    logging.getLogger("speechbrain.utils.train_logger").addFilter(_names_no_torchvision)
    document = read_yaml(hparams_file)
    options = option_places(document)
    unknown = [name for name in overrides if name not in options]
    if unknown:
        sys.exit(unknown_option(unknown[0], [*options, *RunOptions().as_dict()]))
    if unset := unset_placeholders(overrides, document):
        sys.exit(f"--{unset[0]} is needed; see the head of {hparams_file}")
    given = nested(overrides, document)
    try:
        with open(hparams_file, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, _quoted(given))
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        logger.debug("What the YAML cannot build:", exc_info=True)
        sys.exit(in_a_line(error))
    if hparams.get("keep_freed_memory"):
        keep_freed_memory()
    return Hparams(hparams, hparams_file)


class Hparams(dict):
    """The values of a YAML, which ends the program if a recipe needs another one.

    Arguments
    ---------
    values : Mapping
    path : str or Path
        The YAML.

    Example
    -------
    >>> Hparams({"seed": 1}, "my.yaml")["clip"]
    Traceback (most recent call last):
    SystemExit: my.yaml has no key clip, which this recipe needs; it may be ...
    """

    def __init__(self, values: Mapping[str, Any], path: str | Path) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> NoReturn:
        sys.exit(
            f"{self.path} has no key {key}, which this recipe needs; it may be a YAML "
            "for another recipe or an earlier version: see those in hparams/"
        )

    def __or__(self, other: Any) -> "Hparams":
        return Hparams({**self, **other}, self.path)


def yaml_to_save(hparams_file: str | Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments of ``sb.create_experiment_directory``: the YAML, and changes.

    A YAML that includes other files would not load from the run folder, so it is not
    copied there.

    Example
    -------
    >>> yaml_to_save("hparams/finetune.yaml", {"separator": "|"})["overrides"]
    {'table': {'separator': '|'}}
    """
    includes = "!include" in Path(hparams_file).read_text(encoding="utf-8")
    return {
        "hyperparams_to_save": None if includes else str(hparams_file),
        "overrides": nested(overrides, read_yaml(hparams_file)),
    }


def _names_no_torchvision(record: logging.LogRecord) -> bool:
    return "torchvision" not in str(record.msg)


def _quoted(value: Any) -> Any:
    """Quotes text, so that HyperPyYAML keeps it as text: "(2, 3)"."""
    if isinstance(value, dict):
        return {name: _quoted(part) for name, part in value.items()}
    return DoubleQuotedScalarString(value) if isinstance(value, str) else value


def world_size() -> int:
    """Returns the number of processes that `torchrun` started for this run."""
    return int(os.environ.get("WORLD_SIZE", 1))
