"""From a teacher to its stored logits: every clip once, whatever interrupts."""

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray
from torch import Tensor, nn

from efficientat_plugin.contracts import Clip, ClipBatch
from efficientat_plugin.data.clips import Clips, ClipStream
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.data.parquet import waveform_digest
from efficientat_plugin.teachers.store.even_sample import EvenSample
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import MAX_SAMPLE
from efficientat_plugin.teachers.store.writer import FLOAT16_MAX, StoreWriter

logger = logging.getLogger(__name__)

ASKED_AGAIN = 2  # clips of a store that is gone on with
COMPARED = 20  # of its clips, by their sound
LOOKED_THROUGH = 10_000  # rows, to find them
# Of a clip's logits, root mean square: what another precision or device may change.
# Measured of mn04_as: bf16 changes 0.03, the store's float16 0.0002.
SAME_ANSWER = 0.05
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batches:
    """Rows to hear, dealt out to processes: a ``batch_sampler``.

    A row's batch depends on the data set and ``batch_size`` alone, not on what is
    stored already nor on who hears it, so that a run that was killed ends with the
    same logits, bit for bit.

    Arguments
    ---------
    rows : datasets.Dataset
        Of rows with one ``video_id`` the first is heard.
    stored : LogitsStore
        Its clips are not heard again.
    batch_size : int
    rank : int
        Of this process.
    world_size : int
        Number of processes.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        stored: LogitsStore,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        first, known = _first_rows(rows, stored)
        self.num_clips, self.num_stored = len(first), int(known.sum())
        self._rows = first[~known]
        batch_of = (np.arange(len(first)) // batch_size)[~known]
        starts = np.flatnonzero(np.diff(batch_of, prepend=-1))
        # Neighbours stay together, so that a process reads on where it is.
        shares = np.linspace(0, len(starts), world_size + 1).round().astype(np.int64)
        bounds = np.append(starts, len(batch_of))
        self._bounds = bounds[shares[rank] : shares[rank + 1] + 1]

    @property
    def num_remaining(self) -> int:
        """Clips for this process to hear."""
        return int(self._bounds[-1] - self._bounds[0])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for start, stop in pairwise(self._bounds):
            yield self._rows[start:stop].tolist()


def _first_rows(
    rows: datasets.Dataset, stored: LogitsStore
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The first row of each clip, ascending, and whether the store has the clip."""
    # Bytes, not strings: of AudioSet's two million ids these are 22 MB.
    ids, known = [np.empty(0, "S1")], [np.empty(0, bool)]
    for batch in rows.select_columns(["video_id"]).iter(batch_size=10_000):
        names = [str(clip_id) for clip_id in batch["video_id"]]
        ids.append(np.array([name.encode(errors="surrogatepass") for name in names]))
        known.append(stored.rows(names) >= 0)
    first = np.unique(np.concatenate(ids), return_index=True)[1]
    first.sort()
    return first, np.concatenate(known)[first]


def check_precision(precision: str, device: str | torch.device) -> None:
    """Refuses what a device does not compute in.

    Raises
    ------
    ValueError
        For an unknown precision, and for "fp16" on a CPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision={precision!r} must be one of {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and torch.device(device).type == "cpu":
        raise ValueError(
            "precision=fp16 is for GPUs, and this is a CPU; choose bf16, or fp32"
        )


def hear(
    teacher: nn.Module, waveform: Tensor, device: str | torch.device, precision: str
) -> Tensor:
    """What a teacher says, on the CPU in float32: [B, N] -> [B, K].

    Raises
    ------
    ValueError
        If the device has not the memory; says which batch size to try.
    """
    kind = torch.device(device).type
    reduced = precision != "fp32"
    try:
        with torch.autocast(
            kind, dtype=PRECISIONS[precision] if reduced else None, enabled=reduced
        ):
            return teacher(waveform.to(device)).logits.float().cpu()
    except torch.OutOfMemoryError as error:
        size = len(waveform)
        smaller = f"pass --batch_size {size // 2}"
        raise ValueError(
            f"a batch of {size} clips is too much for the memory of {device}; "
            + (smaller if size > 1 else "use a device with more, or --precision bf16")
        ) from error


@torch.inference_mode()
def store_logits(
    writer: StoreWriter,
    teacher: nn.Module,
    rows: datasets.Dataset | datasets.IterableDataset,
    reader: ClipReader,
    device: str | torch.device = "cpu",
    max_unreadable_share: float = 0.01,
    *,
    stored: LogitsStore | None = None,
    batch_size: int = 16,
    precision: str = "fp32",
    rank: int = 0,
    world_size: int = 1,
    num_clips: int | None = None,
    **loader_options: Any,
) -> list[tuple[str, list[int]]]:
    """Appends what a teacher says of all clips that the store does not know yet.

    Arguments
    ---------
    writer : StoreWriter
        Open, of this teacher.
    teacher : nn.Module
        On ``device``: [B, N] -> StudentOutput.
    rows : datasets.Dataset or datasets.IterableDataset
        From ``load_rows`` or ``read_table``; of rows with one ``video_id`` the first
        is heard.
    reader : ClipReader
        Makes clips of rows.
    device : str or torch.device
    max_unreadable_share : float
        More than this is an error.
    stored : LogitsStore or None
        Whose clips are not heard again; None: that of ``writer``.
    batch_size : int
        Clips heard at once, and committed at once.
    precision : str
        "fp32", "bf16" or "fp16" (not on a CPU), of the teacher.
    rank : int
        Of this process; only the first shows a bar.
    world_size : int
        Number of processes, which share the clips; each has a writer of its own.
    num_clips : int or None
        Of a stream, for the bar; None: nobody knows.
    **loader_options
        Of ``torch.utils.data.DataLoader``.

    Returns
    -------
    list of (str, list of int)
        Id and classes of clips heard, an even sample of them: what ``verify`` takes.

    Raises
    ------
    TooManyUnreadable
        If too many clips cannot be read; what was heard is stored.
    ValueError
        If a logit is not finite, the memory does not suffice, or the device has not
        this precision; what was heard before is stored.
    """
    check_precision(precision, device)
    stored = LogitsStore(writer.path) if stored is None else stored
    clips: Clips | ClipStream
    already = len(stored)  # so that few bad clips are not most of what remains
    if isinstance(rows, datasets.Dataset):
        batches = Batches(rows, stored, batch_size, rank, world_size)
        _say_what_is_there(len(rows), batches, rank)
        clips, num_clips = Clips(rows, reader), batches.num_remaining
        loader_options |= {"batch_sampler": batches}
    else:
        if world_size > 1:
            rows = split_dataset_by_node(rows, rank, world_size)
        clips = ClipStream(rows, reader, passed_over=stored)
        if num_clips is not None:
            num_clips = max(num_clips - len(stored), 0) // world_size
        loader_options |= {"batch_size": batch_size}
    heard: EvenSample[tuple[str, list[int]]] = EvenSample(MAX_SAMPLE)
    for batch in read_batches(
        clips,
        None if rank else "teacher",
        max_unreadable_share,
        num_clips,
        already,
        **loader_options,
    ):
        new = _new_clips(batch, writer)
        if not new:
            continue
        waveform = batch.waveform[new]
        logits = hear(teacher, waveform, device, precision)
        digests = [waveform_digest(clip.numpy()) for clip in waveform]
        writer.append([batch.clip_id[place] for place in new], logits, digests)
        for place in new:
            classes = batch.labels[place].nonzero()[:, 0].tolist()
            heard.add((batch.clip_id[place], classes))
    return heard.sample()


@torch.inference_mode()
def refuse_another_answer(
    teacher: nn.Module,
    rows: datasets.Dataset,
    stored: LogitsStore,
    reader: ClipReader,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> None:
    """Asks a teacher again about clips that a store knows, before it is gone on with.

    Code that was changed shows in no digest of weights. Some clips, spread over the
    rows, are compared by their sound, too: other data may have the same ids.

    Raises
    ------
    ValueError
        If the teacher says something else now, if most of the sound compared is not
        what it was asked about, or if the device has not this precision.
    """
    check_precision(precision, device)
    some = rows.select(range(min(len(rows), LOOKED_THROUGH)))
    first, known = _first_rows(some, stored)
    clips = Clips(rows, reader)
    places = first[known]
    spread = np.linspace(0, len(places) - 1, min(COMPARED, len(places))).astype(int)
    compared = [clip for clip in map(clips.__getitem__, places[spread]) if clip.clip_id]
    same = [clip for clip in compared if _sounds_as_stored(clip, stored)]
    _tell_of_other_sound(stored, compared, same)
    for clip in same[:ASKED_AGAIN]:
        said = stored.lookup([clip.clip_id]).logits[0]
        kept = said.topk(stored.manifest.top_k or len(said)).indices
        says = hear(teacher, clip.waveform[None], device, precision)[0]
        says = says.clamp(-FLOAT16_MAX, FLOAT16_MAX)
        difference = (says - said)[kept].square().mean().sqrt()
        allowed = SAME_ANSWER * said[kept].square().mean().sqrt() + 1e-3
        if not difference <= allowed:  # nor is what is not a number
            raise ValueError(
                f"the logits stored in {stored.path} are not what the teacher says "
                f"now, as of clip {clip.clip_id!r}; name another --output_folder (or "
                "--store), or remove what came of the old answers"
            )


def _sounds_as_stored(clip: Clip, stored: LogitsStore) -> bool:
    before = stored.digest(clip.clip_id)
    return before in ("", waveform_digest(clip.waveform.numpy()))


def _tell_of_other_sound(
    stored: LogitsStore, compared: Sequence[Clip], same: Sequence[Clip]
) -> None:
    """Warns of clips whose sound has changed; refuses a store where most have."""
    num_other = len(compared) - len(same)
    if not num_other:
        return
    told = (
        f"{stored.path} holds logits of different sound under the same clip ids: "
        f"{num_other} of the {len(compared)} clips compared have changed"
    )
    if 2 * num_other > len(compared):
        raise ValueError(f"{told}; use another store, or delete this one")
    logger.warning("%s; delete the store to ask the teacher again", told)


def _say_what_is_there(num_rows: int, batches: Batches, rank: int) -> None:
    if rank:
        return
    if batches.num_clips < num_rows:
        print(
            f"{num_rows - batches.num_clips} rows repeat the video_id of another; the "
            "first of each is heard"
        )
    print(f"{batches.num_stored} of {batches.num_clips} clips are stored already")


def _new_clips(batch: ClipBatch, writer: StoreWriter) -> list[int]:
    """Places of clips to hear: a stream may bring one several times."""
    first = {clip_id: n for n, clip_id in reversed(list(enumerate(batch.clip_id)))}
    known = writer.knows(batch.clip_id)
    return [
        n for n, clip in enumerate(batch.clip_id) if first[clip] == n and not known[n]
    ]
