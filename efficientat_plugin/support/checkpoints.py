"""Writes checkpoints so that a kill at any moment cannot leave a half-written one.

SpeechBrain's ``Checkpointer`` works in place: it writes the file that marks a folder
as a checkpoint before the parameters, and deletes file by file.
"""

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from efficientat_plugin.support.files import sha256_of

logger = logging.getLogger(__name__)

UNFINISHED_PREFIX = "UNFINISHED"
DAMAGED_PREFIX = "DAMAGED"
CONTENTS = "contents.json"
STAMP = "%Y-%m-%d+%H-%M-%S"
AUTOMATIC = re.compile(rf"{CKPT_PREFIX}\+[\d-]{{10}}\+[\d-]{{8}}\+\d\d")
LAST_NUMBER = 99  # within a second


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, which writes to a temporary folder and renames it.

    A checkpoint is written to a folder of another name, with a list of its files,
    their sizes and digests, and renamed when all of it is on the disk. A corrupt
    checkpoint is skipped: it is named in the log, the next best one is recovered, and
    the next save renames the corrupt one to DAMAGED+DATE.
    Of equally good checkpoints the oldest is found and kept.

    Arguments
    ---------
    *args, **kwargs
        Arguments of ``speechbrain.utils.checkpoints.Checkpointer``.

    Example
    -------
    >>> import tempfile, torch
    >>> model = torch.nn.Linear(2, 2)
    >>> folder = tempfile.mkdtemp()
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> checkpointer.save_checkpoint().path.name[:4]
    'CKPT'
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._passed_over: set[Path] = set()

    def save_checkpoint(
        self,
        meta: dict[str, Any] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """As ``Checkpointer``, but saves a checkpoint entirely or not at all."""
        later = meta or {}
        if if_main_process():
            self._tidy()
            later = {"unixtime": self._later_than_all()} | later
        unfinished = super().save_checkpoint(
            later, end_of_epoch, name, verbosity=logging.DEBUG
        )
        ddp_barrier()  # every process has written its part
        finished = None
        if unfinished is not None:
            final = self._finish(unfinished.path)
            paramfiles = {
                name: final / path.name for name, path in unfinished.paramfiles.items()
            }
            finished = Checkpoint(final, unfinished.meta, paramfiles)
            logger.log(verbosity, "Saved a checkpoint in %s", final)
        ddp_barrier()  # no process lists the folder before it has its final name
        return finished

    def save_and_keep_only(self, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint and deletes those that are neither best nor newest."""
        # Without its own list, each call adds a key to those of all earlier calls, and
        # the folder is read again for every key.
        kwargs["importance_keys"] = list(kwargs.get("importance_keys", ()))
        super().save_and_keep_only(*args, **kwargs)

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Iterable[str] | None = None,
        max_keys: Iterable[str] | None = None,
        importance_keys: Iterable[Callable[[Checkpoint], Any]] = (ckpt_recency,),
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """As ``Checkpointer``, but deletes each checkpoint entirely or not at all.

        Raises
        ------
        OSError
            If another process is deleting them.
        ValueError
            If ``num_to_keep`` is negative.
        """
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep={num_to_keep} must be 0 or more")
        orders: list[dict[str, Any]] = [
            *({"min_key": key} for key in min_keys or ()),
            *({"max_key": key} for key in max_keys or ()),
            *({"importance_key": key} for key in importance_keys),
        ]
        found: set[Path] = set()
        kept: set[Path] = set()
        try:
            for order in orders:
                ordered = self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
                found.update(checkpoint.path for checkpoint in ordered)
                kept.update(checkpoint.path for checkpoint in ordered[:num_to_keep])
            ddp_barrier()  # every process has listed them
            if if_main_process():
                for folder in sorted(found - kept):
                    _remove(folder)
                    logger.log(verbosity, "Deleted the checkpoint in %s", folder)
        except FileNotFoundError as error:
            raise OSError(
                f"checkpoints in {self.checkpoints_dir} are being deleted by another "
                "process; leave the folder alone, and rerun the same command"
            ) from error
        ddp_barrier()

    def delete_superseded(self) -> None:
        """Deletes old checkpoints that a kill just after a save at an epoch's end left.

        Otherwise a run that is interrupted in the save of its last epoch would keep a
        checkpoint from within that epoch for good.
        """
        newest = next(iter(self.find_checkpoints()), None)
        if newest is None or not newest.meta["end-of-epoch"]:
            return
        numbers = {k for k, v in newest.meta.items() if isinstance(v, int | float)}
        scores = numbers - {"unixtime", "end-of-epoch", "epoch"}
        self.delete_checkpoints(max_keys=sorted(scores))

    def find_checkpoints(
        self,
        importance_key: Callable[[Checkpoint], Any] | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        max_num_checkpoints: int | None = None,
    ) -> list[Checkpoint]:
        """As ``Checkpointer``: best first, but of equal ones the oldest first."""
        found = super().find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate
        )
        key = max_key or min_key
        if key:  # SpeechBrain puts the newest of equals first
            found.sort(key=ckpt_recency)
            found.sort(key=lambda found: found.meta[key], reverse=bool(max_key))
        return found[:max_num_checkpoints]

    def recover_if_possible(
        self,
        importance_key: Callable[[Checkpoint], Any] | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
    ) -> Checkpoint | None:
        """Recovers the best checkpoint that is not corrupt.

        Raises
        ------
        ValueError
            If there are checkpoints, but all are corrupt, or one is of another model.
        """
        for chosen in self.find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate
        ):
            if _is_unchanged(chosen.path):
                self._recover(chosen)
                return chosen
            self._pass_over(chosen.path)
        if self._passed_over:
            raise ValueError(
                f"every checkpoint in {self.checkpoints_dir} is corrupt; restore a "
                "copy, or delete the folder to start over"
            )
        return None

    def _recover(self, chosen: Checkpoint) -> None:
        try:
            self.load_checkpoint(chosen)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            first = str(error).splitlines()[1].strip()
            raise ValueError(
                f"{chosen.path} belongs to another model ({first}); give the options "
                "that it was trained with, or name another folder"
            ) from error

    def _pass_over(self, folder: Path) -> None:
        if folder not in self._passed_over:
            self._passed_over.add(folder)
            logger.warning(
                "Skipping %s, which is corrupt: one of its files is missing, truncated "
                "or changed",
                folder,
            )

    def _tidy(self) -> None:
        # Not at the start: a run that only evaluates must not disturb one that trains.
        for damaged in self._passed_over:
            if damaged.is_dir() and not _is_whole(damaged):
                name = damaged.name.replace(CKPT_PREFIX, DAMAGED_PREFIX, 1)
                aside = damaged.with_name(f"{name}-{uuid.uuid4().hex[:8]}")
                os.replace(damaged, aside)
        self._passed_over.clear()  # a new checkpoint may get one of their names
        for leftover in self.checkpoints_dir.glob(f"{UNFINISHED_PREFIX}*"):
            logger.warning("Deleting %s, which a killed run left unfinished", leftover)
            shutil.rmtree(leftover)

    def _finish(self, unfinished: Path) -> Path:
        files = sorted(path for path in unfinished.iterdir() if path.is_file())
        contents = unfinished / CONTENTS
        listed = {file.name: [file.stat().st_size, sha256_of(file)] for file in files}
        contents.write_text(json.dumps(listed))
        for path in [*files, contents, unfinished]:
            _to_disk(path)
        stamp = unfinished.name.removeprefix(UNFINISHED_PREFIX)
        final = unfinished.with_name(CKPT_PREFIX + stamp)
        before = None
        if final.exists():  # a named checkpoint, which stays valid until replaced
            before = final.with_name(f"{final.name}-{uuid.uuid4().hex[:8]}")
            os.replace(final, before)
        os.replace(unfinished, final)
        _to_disk(self.checkpoints_dir)
        if before is not None:
            _remove(before)
        return final

    def _later_than_all(self) -> float:
        """Returns the time, or just after the newest checkpoint if that is later."""
        newest = next(iter(self.find_checkpoints()), None)
        return max(time.time(), newest.meta["unixtime"] + 1e-3 if newest else 0.0)

    def _new_checkpoint_dirpath(self) -> Path:
        """Returns a folder whose name sorts by time, also within a second.

        SpeechBrain reuses a name that was deleted within the second, so the newest
        checkpoint could sort before an older one.
        """
        stamp, number = time.strftime(STAMP), 0
        names = (path.name for path in self.checkpoints_dir.glob(f"{CKPT_PREFIX}*"))
        newest = max(filter(AUTOMATIC.fullmatch, names), default="")
        _, _, taken = newest.partition("+")
        if taken[:-3] >= stamp:
            stamp, number = taken[:-3], int(taken[-2:]) + 1
            if number > LAST_NUMBER:
                later = datetime.strptime(stamp, STAMP) + timedelta(seconds=1)
                stamp, number = later.strftime(STAMP), 0
        return _aside(self.checkpoints_dir / f"{CKPT_PREFIX}+{stamp}+{number:02d}")

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        return _aside(super()._custom_checkpoint_dirpath(name))

    def _list_checkpoint_dirs(self) -> list[Path]:
        complete = []
        for folder in sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}*")):
            if _is_complete(folder):
                complete.append(folder)
            elif folder.is_dir():
                self._pass_over(folder)
        return complete


def _aside(final: Path) -> Path:
    return final.with_name(final.name.replace(CKPT_PREFIX, UNFINISHED_PREFIX, 1))


def _remove(checkpoint: Path) -> None:
    """Renames a checkpoint, then deletes it: half of it must not count as corrupt."""
    aside = checkpoint.with_name(f"{UNFINISHED_PREFIX}-{uuid.uuid4().hex[:8]}")
    os.replace(checkpoint, aside)
    shutil.rmtree(aside)


def _is_complete(checkpoint: Path) -> bool:
    """Whether all files have the recorded sizes, and its metadata is unchanged."""
    try:
        contents = json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8"))
        sizes = {name: (checkpoint / name).stat().st_size for name in contents}
        return sizes == {
            name: size for name, (size, _) in contents.items()
        } and contents[METAFNAME][1] == sha256_of(checkpoint / METAFNAME)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return False


def _is_unchanged(checkpoint: Path) -> bool:
    """Whether the files of a complete checkpoint have the recorded digests."""
    contents = json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8"))
    return all(
        sha256_of(checkpoint / name) == digest for name, (_, digest) in contents.items()
    )


def _is_whole(checkpoint: Path) -> bool:
    return _is_complete(checkpoint) and _is_unchanged(checkpoint)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
