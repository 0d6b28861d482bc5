"""Writes checkpoints so that a kill at any moment cannot leave a half-written one.

SpeechBrain's ``Checkpointer`` works in place: it writes the file that marks a folder
as a checkpoint before the parameters, and deletes file by file.
"""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
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

from efficientat_plugin.support.files import sha256_of, to_disk

logger = logging.getLogger(__name__)

UNFINISHED_PREFIX = "UNFINISHED"
DAMAGED_PREFIX = "DAMAGED"
CONTENTS = "contents.json"


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
        self._damaged: list[Path] = []

    def save_checkpoint(
        self,
        meta: dict[str, Any] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """As ``Checkpointer``, but saves a checkpoint entirely or not at all."""
        if if_main_process():
            self._tidy()
        unfinished = super().save_checkpoint(
            meta or {}, end_of_epoch, name, verbosity=logging.DEBUG
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
        for order in orders:
            ordered = self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
            found.update(checkpoint.path for checkpoint in ordered)
            kept.update(checkpoint.path for checkpoint in ordered[:num_to_keep])
        ddp_barrier()  # every process has listed them
        if if_main_process():
            for folder in sorted(found - kept):
                _remove(folder)
                logger.log(verbosity, "Deleted the checkpoint in %s", folder)
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
        self._damaged = [path for path in self._folders() if not _is_intact(path)]
        for path in self._damaged:
            logger.warning(
                "Skipping %s, which is corrupt: one of its files is missing, truncated "
                "or changed",
                path,
            )

        def may_load(checkpoint: Checkpoint) -> bool:
            is_wanted = ckpt_predicate is None or ckpt_predicate(checkpoint)
            return is_wanted and checkpoint.path not in self._damaged

        chosen = self.find_checkpoint(importance_key, max_key, min_key, may_load)
        if chosen is not None:
            self._recover(chosen)
        elif self._damaged:
            raise ValueError(
                f"every checkpoint in {self.checkpoints_dir} is corrupt; restore a "
                "copy, or delete the folder to start over"
            )
        return chosen

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

    def _tidy(self) -> None:
        # Not at the start: a run that only evaluates must not disturb one that trains.
        for damaged in self._damaged:
            if damaged.is_dir():
                name = damaged.name.replace(CKPT_PREFIX, DAMAGED_PREFIX, 1)
                os.replace(damaged, damaged.with_name(f"{name}-{uuid.uuid4().hex[:8]}"))
        self._damaged = []
        for leftover in self.checkpoints_dir.glob(f"{UNFINISHED_PREFIX}*"):
            logger.warning("Deleting %s, which a killed run left unfinished", leftover)
            shutil.rmtree(leftover)

    def _finish(self, unfinished: Path) -> Path:
        files = sorted(path for path in unfinished.iterdir() if path.is_file())
        contents = unfinished / CONTENTS
        listed = {file.name: [file.stat().st_size, sha256_of(file)] for file in files}
        contents.write_text(json.dumps(listed))
        for path in [*files, contents, unfinished]:
            to_disk(path)
        stamp = unfinished.name.removeprefix(UNFINISHED_PREFIX)
        final = unfinished.with_name(CKPT_PREFIX + stamp)
        before = None
        if final.exists():  # a named checkpoint, which stays valid until replaced
            before = final.with_name(f"{final.name}-{uuid.uuid4().hex[:8]}")
            os.replace(final, before)
        os.replace(unfinished, final)
        to_disk(self.checkpoints_dir)
        if before is not None:
            _remove(before)
        return final

    def _new_checkpoint_dirpath(self) -> Path:
        # SpeechBrain takes a name again that was deleted within the second: the newest
        # checkpoint could sort before an older one.
        stamp = datetime.now().strftime("%Y-%m-%d+%H-%M-%S-%f")
        return _aside(self.checkpoints_dir / f"{CKPT_PREFIX}+{stamp}")

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        return _aside(super()._custom_checkpoint_dirpath(name))

    def _folders(self) -> list[Path]:
        found = sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}*"))
        return [path for path in found if path.is_dir()]

    def _list_checkpoint_dirs(self) -> list[Path]:
        return [path for path in self._folders() if _is_intact(path, [METAFNAME])]


def _aside(final: Path) -> Path:
    return final.with_name(final.name.replace(CKPT_PREFIX, UNFINISHED_PREFIX, 1))


def _remove(checkpoint: Path) -> None:
    """Renames a checkpoint, then deletes it: half of it must not count as corrupt."""
    aside = checkpoint.with_name(f"{UNFINISHED_PREFIX}-{uuid.uuid4().hex[:8]}")
    os.replace(checkpoint, aside)
    shutil.rmtree(aside)


def _is_intact(checkpoint: Path, digested: Collection[str] | None = None) -> bool:
    """Whether all files have their recorded sizes, and those named their digests."""
    try:
        contents = json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8"))
        return METAFNAME in contents and all(
            (checkpoint / name).stat().st_size == size
            and (
                (digested is not None and name not in digested)
                or sha256_of(checkpoint / name) == digest
            )
            for name, (size, digest) in contents.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False
