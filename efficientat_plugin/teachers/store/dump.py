"""Stores the logits of a teacher: scores every clip once, across interruptions."""

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

ASKED_AGAIN = 2  # clips scored again before a store is resumed
COMPARED = 20  # clips of it whose sound is compared
LOOKED_THROUGH = 10_000  # rows searched for them
# Allowed change of a clip's logits by another precision or device (relative, root mean
# square). Measured with mn04_as: 0.03 in bf16, 0.0002 in the store's float16.
SAME_ANSWER = 0.05
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batches:
    """A ``batch_sampler`` that splits the rows to score among processes.

    A row's batch depends only on the data set and ``batch_size``, not on what is stored
    already or which process scores it, so a resumed run ends with the same logits, bit
    for bit.

    Arguments
    ---------
    rows : datasets.Dataset
        Of rows with the same ``video_id``, only the first is scored.
    stored : LogitsStore
        Its clips are not scored again.
    batch_size : int
    rank : int
        Rank of this process.
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
        # Each process gets consecutive batches, so that it reads sequentially.
        shares = np.linspace(0, len(starts), world_size + 1).round().astype(np.int64)
        bounds = np.append(starts, len(batch_of))
        self._bounds = bounds[shares[rank] : shares[rank + 1] + 1]

    @property
    def num_remaining(self) -> int:
        """Clips for this process to score."""
        return int(self._bounds[-1] - self._bounds[0])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for start, stop in pairwise(self._bounds):
            yield self._rows[start:stop].tolist()


def _first_rows(
    rows: datasets.Dataset, stored: LogitsStore
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the first row of each clip, ascending, and whether it is stored."""
    # Bytes, not strings: AudioSet's two million ids take 22 MB.
    ids, known = [np.empty(0, "S1")], [np.empty(0, bool)]
    for batch in rows.select_columns(["video_id"]).iter(batch_size=10_000):
        names = [str(clip_id) for clip_id in batch["video_id"]]
        ids.append(np.array([name.encode(errors="surrogatepass") for name in names]))
        known.append(stored.rows(names) >= 0)
    first = np.unique(np.concatenate(ids), return_index=True)[1]
    first.sort()
    return first, np.concatenate(known)[first]


def check_precision(precision: str, device: str | torch.device) -> None:
    """Refuses a precision that the device does not support.

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
            "precision=fp16 needs a GPU, and this is a CPU; choose bf16 or fp32"
        )


def hear(
    teacher: nn.Module, waveform: Tensor, device: str | torch.device, precision: str
) -> Tensor:
    """Computes a teacher's logits, in float32 on the CPU: [B, N] -> [B, K].

    Raises
    ------
    ValueError
        If the device runs out of memory; suggests a smaller batch size.
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
            f"a batch of {size} clips does not fit into the memory of {device}; "
            + (smaller if size > 1 else "use a larger device, or --precision bf16")
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
    """Computes and appends a teacher's logits of all clips that are not stored yet.

    Arguments
    ---------
    writer : StoreWriter
        An open writer of this teacher's store.
    teacher : nn.Module
        On ``device``: [B, N] -> StudentOutput.
    rows : datasets.Dataset or datasets.IterableDataset
        From ``load_rows`` or ``read_table``; of rows with the same ``video_id``, only
        the first is scored.
    reader : ClipReader
        Turns rows into clips.
    device : str or torch.device
    max_unreadable_share : float
        A larger share of unreadable clips is an error.
    stored : LogitsStore or None
        Its clips are not scored again; None: the store of ``writer``.
    batch_size : int
        Clips scored and committed at once.
    precision : str
        Precision of the teacher: "fp32", "bf16" or "fp16" (not on a CPU).
    rank : int
        Rank of this process; only the first shows a progress bar.
    world_size : int
        Number of processes that share the clips; each has a writer of its own.
    num_clips : int or None
        Length of a stream, for the progress bar; None: unknown.
    **loader_options
        Options of ``torch.utils.data.DataLoader``.

    Returns
    -------
    list of (str, list of int)
        Ids and classes of an even sample of the clips scored, as ``verify`` takes them.

    Raises
    ------
    TooManyUnreadable
        If too many clips cannot be read; logits computed before are stored.
    ValueError
        If a logit is not finite, memory runs out, or the device does not support the
        precision; logits computed before are stored.
    """
    check_precision(precision, device)
    stored = LogitsStore(writer.path) if stored is None else stored
    clips: Clips | ClipStream
    already = len(stored)  # counted, lest a few unreadable clips be most of the rest
    if isinstance(rows, datasets.Dataset):
        batches = Batches(rows, stored, batch_size, rank, world_size)
        _say_what_is_there(len(rows), batches, rank)
        clips, num_clips = Clips(rows, reader), batches.num_remaining
        loader_options |= {"batch_sampler": batches}
    else:
        if world_size > 1:
            rows = split_dataset_by_node(rows, rank, world_size)
        clips = ClipStream(rows, reader, left_out=stored)
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
    """Refuses to resume a store if the teacher or the sound has changed.

    The teacher scores some stored clips again, since a digest of weights does not show
    changed code. The sound of some clips, spread over the rows, is compared with its
    stored digests, since other data may have the same ids.

    Raises
    ------
    ValueError
        If the teacher's logits differ from the stored ones, if the sound of most clips
        compared has changed, or if the device does not support the precision.
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
        if not difference <= allowed:  # also true of NaN
            raise ValueError(
                f"the logits stored in {stored.path} differ from what the teacher "
                f"computes now, e.g. for clip {clip.clip_id!r}; name another "
                "--output_folder (or --store), or delete this store and its results"
            )


def _sounds_as_stored(clip: Clip, stored: LogitsStore) -> bool:
    before = stored.digest(clip.clip_id)
    return before in ("", waveform_digest(clip.waveform.numpy()))


def _tell_of_other_sound(
    stored: LogitsStore, compared: Sequence[Clip], same: Sequence[Clip]
) -> None:
    """Warns of clips whose sound has changed; refuses the store if most have."""
    num_other = len(compared) - len(same)
    if not num_other:
        return
    told = (
        f"{stored.path} holds logits of different sound under the same clip ids: "
        f"{num_other} of the {len(compared)} clips compared have changed"
    )
    if 2 * num_other > len(compared):
        raise ValueError(f"{told}; use another store, or delete this one")
    logger.warning("%s; delete the store to compute all logits again", told)


def _say_what_is_there(num_rows: int, batches: Batches, rank: int) -> None:
    if rank:
        return
    if batches.num_clips < num_rows:
        print(
            f"{num_rows - batches.num_clips} rows repeat the video_id of another; only "
            "the first of each is used"
        )
    print(f"{batches.num_stored} of {batches.num_clips} clips are stored already")


def _new_clips(batch: ClipBatch, writer: StoreWriter) -> list[int]:
    """Returns the places of clips to score; a stream may repeat a clip."""
    first = {clip_id: n for n, clip_id in reversed(list(enumerate(batch.clip_id)))}
    known = writer.knows(batch.clip_id)
    return [
        n for n, clip in enumerate(batch.clip_id) if first[clip] == n and not known[n]
    ]
