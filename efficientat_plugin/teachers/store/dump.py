"""Stores the logits of a teacher: scores every clip once, across interruptions.

Several processes of a `torchrun` share the clips. After each batch they exchange what
they computed, and the first one appends it to the store.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray
from speechbrain.utils.distributed import get_rank
from torch import Tensor, nn

from efficientat_plugin.contracts import FrameOutput, StudentOutput
from efficientat_plugin.data.clips import Clips, ClipStream
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.data.parquet import waveform_digest
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.support.files import explain_write_errors
from efficientat_plugin.support.launch import world_size
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import EvenSample
from efficientat_plugin.teachers.store.writer import FLOAT16_MAX, StoreWriter

logger = logging.getLogger(__name__)

NUM_RESCORED = 2  # clips scored again before a store is resumed
NUM_COMPARED = 20  # clips of it whose sound is compared
NUM_SEARCHED = 10_000  # rows searched for them
# Allowed change of a clip's logits by another precision or device (relative, root mean
# square). Measured with mn04_as: 0.03 in bf16, 0.0002 in the store's float16.
SAME_LOGITS = 0.05
LONGEST_WAIT = timedelta(days=30)  # for the slowest process
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Scored(NamedTuple):
    """What a process computed from a batch of clips."""

    clip_id: list[str]
    logits: Tensor  # [B, K], or [B, K, T'] of frames; on the CPU
    weak: Tensor | None  # [B, K], of the clips beside those of their frames
    digest: list[str]  # of the samples
    classes: list[list[int]]


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


def batches_to_score(
    first: NDArray[np.int64], known: NDArray[np.bool_], batch_size: int
) -> list[NDArray[np.int64]]:
    """Splits the rows to score into batches, a ``batch_sampler``.

    A row's batch depends only on the data set and ``batch_size``, not on what is stored
    already, so a resumed run ends with the same logits, bit for bit.

    Example
    -------
    >>> batches_to_score(np.arange(5), np.array([True, True, False, True, False]), 2)
    [array([2]), array([4])]
    """
    starts = range(batch_size, len(first), batch_size)
    batches = zip(np.split(first, starts), np.split(known, starts), strict=True)
    remaining = [rows[~stored] for rows, stored in batches]
    return [rows for rows in remaining if len(rows)]


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


def compute_logits(
    teacher: nn.Module, waveform: Tensor, device: str | torch.device, precision: str
) -> Tensor:
    """Computes a teacher's logits, in float32 on the CPU: [B, N] -> [B, K].

    Raises
    ------
    ValueError
        If the device runs out of memory; suggests a smaller batch size.
    """
    return compute_output(teacher, waveform, device, precision).logits.float().cpu()


def compute_output(
    teacher: nn.Module, waveform: Tensor, device: str | torch.device, precision: str
) -> StudentOutput | FrameOutput:
    """Computes a teacher's output, on its device, as `compute_logits` does."""
    kind = torch.device(device).type
    reduced = precision != "fp32"
    try:
        with torch.autocast(
            kind, dtype=PRECISIONS[precision] if reduced else None, enabled=reduced
        ):
            return teacher(waveform.to(device))
    except torch.OutOfMemoryError as error:
        size = len(waveform)
        smaller = f"pass --batch_size {size // 2}"
        raise ValueError(
            f"a batch of {size} clips does not fit into the memory of {device}; "
            + (smaller if size > 1 else "use a larger device, or --precision bf16")
        ) from error


def fill_store(
    path: str | Path,
    name: str,
    teacher: Ensemble,
    labels: LabelTable,
    rows: datasets.Dataset | datasets.IterableDataset,
    clip_seconds: float,
    device: str | torch.device = "cpu",
    max_unreadable_share: float = 0.01,
    short_clips: str = "zero_pad",
    precision: str = "fp32",
    of_frames: bool = False,
    **options: Any,
) -> list[tuple[str, list[int]]]:
    """Computes and appends the logits of all clips that are not stored yet.

    Every process of a run must call it. If logits are stored already, the teacher
    scores some of their clips again, in case it has changed.

    Arguments
    ---------
    path : str or Path
        Folder of the store; created if it does not exist.
    name : str
        Name of the teacher.
    teacher : Ensemble
        On ``device``; clips are read at its sample rate.
    labels : LabelTable
        Its classes.
    rows : datasets.Dataset or datasets.IterableDataset
        From ``load_rows`` or ``read_table``.
    clip_seconds : float
        Length of each clip, s.
    device : str or torch.device
    max_unreadable_share : float
        A larger share of unreadable clips is an error.
    short_clips : str
        How shorter sound is lengthened: "zero_pad" or "repeat".
    precision : str
        Precision of the teacher: "fp32", "bf16" or "fp16" (not on a CPU).
    of_frames : bool
        Whether to store the logits of frames, and beside them those of the clip, if
        they are of the same classes.
    **options
        Options of ``store_logits``, e.g. ``batch_size=32``.

    Returns
    -------
    list of (str, list of int)
        As ``store_logits``.

    Raises
    ------
    OSError, ValueError, TooManyUnreadable
        As ``StoreWriter`` and ``store_logits``; logits computed before are stored.
    """
    check_precision(precision, device)
    everyone = None
    if world_size() > 1:  # the default group times out after two hours of waiting
        everyone = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    about: dict[str, Any] = {
        "teacher": name,
        "teacher_sha256": teacher.sha256(),
        "labels_sha256": labels.sha256,
        "num_classes": len(labels),
        "sample_rate": teacher.sample_rate,
        "clip_seconds": clip_seconds,
        "short_clips": short_clips,
        "precision": precision,
    }
    if of_frames:
        about |= frames_of(teacher, clip_seconds, device)
    writes = not get_rank()
    reader = ClipReader(labels, clip_seconds, teacher.sample_rate, short_clips)
    with (
        explain_write_errors(path),
        StoreWriter(path, **about) if writes else nullcontext() as writer,
    ):
        if everyone is not None:
            torch.distributed.barrier(group=everyone)  # until the store exists
        stored = LogitsStore(path)
        if writes and isinstance(rows, datasets.Dataset):  # a stream is read once
            refuse_changed(teacher, rows, stored, reader, device, precision)
        return store_logits(
            writer,
            teacher,
            rows,
            reader,
            device,
            max_unreadable_share,
            stored=stored,
            precision=precision,
            everyone=everyone,
            **options,
        )


@torch.inference_mode()
def frames_of(
    teacher: Ensemble, clip_seconds: float, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Finds out which frames of a clip a teacher scores, as ``StoreWriter`` takes them.

    Raises
    ------
    ValueError
        If it does not score frames.

    Example
    -------
    >>> from efficientat_plugin import FrameMN, LogMel
    >>> from efficientat_plugin.students.ensemble import WaveformStudent
    >>> log_mel = LogMel(sample_rate=16000, hop_length=160, f_max=7000.0)
    >>> teacher = Ensemble([WaveformStudent(log_mel, FrameMN(3, width=0.1))]).eval()
    >>> frames_of(teacher, clip_seconds=10.0)
    {'num_frames': 250, 'frame_seconds': 0.04, 'has_weak': True}
    """
    silence = torch.zeros(1, round(clip_seconds * teacher.sample_rate), device=device)
    output, frame_samples = teacher(silence), teacher.frame_samples
    if not isinstance(output, FrameOutput) or frame_samples is None:
        raise ValueError(
            "a teacher does not score frames, or not the same ones as the others; use "
            "a FrameMN or a FramePaSST, such as fmn10_tf_256_strong, or store the "
            "logits of clips"
        )
    return {
        "num_frames": output.strong.shape[2],
        "frame_seconds": frame_samples / teacher.sample_rate,
        "has_weak": output.weak.shape[1] == output.strong.shape[1],
    }


@torch.inference_mode()
def store_logits(
    writer: StoreWriter | None,
    teacher: nn.Module,
    rows: datasets.Dataset | datasets.IterableDataset,
    reader: ClipReader,
    device: str | torch.device = "cpu",
    max_unreadable_share: float = 0.01,
    *,
    stored: LogitsStore,
    batch_size: int = 16,
    precision: str = "fp32",
    everyone: Any = None,
    num_clips: int | None = None,
    **loader_options: Any,
) -> list[tuple[str, list[int]]]:
    """Computes and appends a teacher's logits of all clips that are not stored yet.

    Arguments
    ---------
    writer : StoreWriter or None
        An open writer of this teacher's store; None: another process has it.
    teacher : nn.Module
        On ``device``: [B, N] -> StudentOutput.
    rows : datasets.Dataset or datasets.IterableDataset
        From ``load_rows`` or ``read_table``; of rows with the same ``video_id``, only
        the first is stored.
    reader : ClipReader
        Turns rows into clips.
    device : str or torch.device
    max_unreadable_share : float
        A larger share of unreadable clips is an error.
    stored : LogitsStore
        The store, opened beforehand; its clips are not scored again.
    batch_size : int
        Clips scored and committed at once.
    precision : str
        Precision of the teacher: "fp32", "bf16" or "fp16" (not on a CPU).
    everyone : torch.distributed.ProcessGroup or None
        The processes that share the clips; None: only this one.
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
        If a logit is not finite, or memory runs out; logits computed before are stored.
    """
    rank, size = (0, 1) if everyone is None else (everyone.rank(), everyone.size())
    clips: Clips | ClipStream
    if isinstance(rows, datasets.Dataset):
        first, known = _first_rows(rows, stored)
        batches = batches_to_score(first, known, batch_size)[rank::size]
        if not rank:
            _print_progress(len(rows), len(first), int(known.sum()))
        clips, num_clips = Clips(rows, reader), sum(map(len, batches))
        loader_options |= {"batch_sampler": batches}
    else:
        if size > 1:
            rows = split_dataset_by_node(rows, rank, size)
        clips = ClipStream(rows, reader, left_out=stored)
        if num_clips is not None:
            num_clips = max(num_clips - len(stored), 0) // size
        loader_options |= {"batch_size": batch_size}
    read = read_batches(
        clips,
        None if rank else "teacher",
        max_unreadable_share,
        num_clips,
        len(stored),  # counted, lest a few unreadable clips be most of the rest
        **loader_options,
    )
    own = (
        Scored(
            batch.clip_id,
            *_logits_for(stored, teacher, batch.waveform, device, precision),
            [waveform_digest(clip.numpy()) for clip in batch.waveform],
            [labels.nonzero()[:, 0].tolist() for labels in batch.labels],
        )
        for batch in read
    )
    sample = EvenSample()
    for scored in _of_all(own, everyone):
        if writer is not None:
            _append(writer, scored)
        for pair in zip(scored.clip_id, scored.classes, strict=True):
            sample.add(pair)
    return sample.items


def _of_all(own: Iterator[Scored], everyone: Any) -> Iterator[Scored]:
    """Yields the batches of all processes, in all of them, in the order of the rows."""
    if everyone is None:
        yield from own
        return
    found: list[Scored | None] = [None] * everyone.size()
    while True:
        torch.distributed.all_gather_object(found, next(own, None), group=everyone)
        if not any(found):
            return
        yield from filter(None, found)


def _logits_for(
    stored: LogitsStore,
    teacher: nn.Module,
    waveform: Tensor,
    device: str | torch.device,
    precision: str,
) -> tuple[Tensor, Tensor | None]:
    """Computes what the store keeps: logits of clips, or of frames and of clips."""
    if stored.manifest.num_frames is None:
        return compute_logits(teacher, waveform, device, precision), None
    output = compute_output(teacher, waveform, device, precision)
    assert isinstance(output, FrameOutput)  # `frames_of` refuses others
    weak = output.weak.float().cpu() if stored.manifest.has_weak else None
    return output.strong.float().cpu(), weak


def _append(writer: StoreWriter, scored: Scored) -> None:
    """Appends the clips that are not in the store; a stream may repeat a clip."""
    place_of = {clip: n for n, clip in reversed([*enumerate(scored.clip_id)])}
    new = sorted(n for clip, n in place_of.items() if clip not in writer)
    writer.append(
        [scored.clip_id[n] for n in new],
        scored.logits[new],
        [scored.digest[n] for n in new],
        None if scored.weak is None else scored.weak[new],
    )


@torch.inference_mode()
def refuse_changed(
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
        If the teacher's logits differ from the stored ones, or if the sound of most
        clips compared has changed.
    """
    some = rows.select(range(min(len(rows), NUM_SEARCHED)))
    first, known = _first_rows(some, stored)
    places = first[known]
    spread = np.linspace(0, len(places) - 1, min(NUM_COMPARED, len(places))).astype(int)
    clips = Clips(rows, reader)
    compared = [clip for clip in map(clips.__getitem__, places[spread]) if clip.clip_id]
    same = [
        clip
        for clip in compared
        if stored.digest(clip.clip_id) in ("", waveform_digest(clip.waveform.numpy()))
    ]
    if len(same) < len(compared):
        changed = (
            f"{stored.path} holds logits of different sound under the same clip ids: "
            f"{len(compared) - len(same)} of the {len(compared)} clips compared have "
            "changed"
        )
        if 2 * len(same) < len(compared):
            raise ValueError(f"{changed}; use another store, or delete this one")
        logger.warning("%s; delete the store to compute all logits again", changed)
    for clip in same[:NUM_RESCORED]:
        before = stored.lookup([clip.clip_id]).logits[0]
        sound = clip.waveform[None]
        now = _logits_for(stored, teacher, sound, device, precision)[0][0]
        now = now.clamp(-FLOAT16_MAX, FLOAT16_MAX)
        difference = (now - before).square().mean().sqrt()
        allowed = SAME_LOGITS * before.square().mean().sqrt() + 1e-3
        if not difference <= allowed:  # also true of NaN
            raise ValueError(
                f"the logits stored in {stored.path} differ from what the teacher "
                f"computes now, e.g. for clip {clip.clip_id!r}; name another "
                "--output_folder (or --store), or delete this store and its results"
            )


def _print_progress(num_rows: int, num_clips: int, num_stored: int) -> None:
    if num_clips < num_rows:
        print(
            f"{num_rows - num_clips} rows repeat the video_id of another; only the "
            "first of each is used"
        )
    print(f"{num_stored} of {num_clips} clips are stored already")
