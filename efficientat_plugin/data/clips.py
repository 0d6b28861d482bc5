"""Data sets of clips, map-style and streamed, and the collation of batches."""

import math
from collections.abc import Container, Iterator, Sequence

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from efficientat_plugin.contracts import Clip, ClipBatch, Skipped
from efficientat_plugin.data.decoding import ClipReader, UnreadableClip
from efficientat_plugin.data.mixing import WaveformAugment, WaveformMix
from efficientat_plugin.data.sampling import Draw

MAX_REPLACEMENTS = 100


class Clips(torch.utils.data.Dataset):
    """A map-style data set of clips; works in forked and in spawned loader workers.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``load_rows``.
    reader : ClipReader
        Turns rows into clips.
    augment : WaveformAugment | None
        Gain and roll, for training.
    waveform_mix : WaveformMix | None
        Mixing of two clips, for training.
    seed : int
        Seeds the random changes of a clip, together with the epoch and the position
        of its ``Draw``.
    replace_unreadable : bool
        Whether the next readable row replaces an unreadable one, so that training
        batches keep their size; if False, the place stays empty.
    is_strong : array or None
        [rows], whether a clip has strong labels, if batches are made of halves: then a
        row is replaced by one of its half, and ``waveform_mix`` mixes clips with strong
        labels, with one another. None: all rows are alike.

    Example
    -------
    >>> from efficientat_plugin.data.labels import LabelTable
    >>> rows = datasets.Dataset.from_dict(
    ...     {"video_id": ["a"], "audio": [{"bytes": b"?"}], "labels": [["x"]]}
    ... )
    >>> clips = Clips(rows, ClipReader(LabelTable(["x"], ["X"])))
    >>> clips[0].skipped[0].clip_id
    'a'
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        reader: ClipReader,
        augment: WaveformAugment | None = None,
        waveform_mix: WaveformMix | None = None,
        seed: int = 0,
        replace_unreadable: bool = False,
        is_strong: NDArray[np.bool_] | None = None,
    ) -> None:
        self.rows = rows
        self.reader = reader
        self.augment = augment
        self.waveform_mix = waveform_mix
        self.seed = seed
        self.replace_unreadable = replace_unreadable
        self.is_strong = is_strong
        self._halves: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None
        if is_strong is not None:
            self._halves = np.flatnonzero(~is_strong), np.flatnonzero(is_strong)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> Clip:
        if not isinstance(draw, Draw):
            draw = Draw(row=int(draw), epoch=0, position=int(draw))
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position])
        clip = self._read(draw.row, rng)
        if clip.clip_id and self.augment is not None:
            clip = _augmented(clip, self.augment, rng)
        is_mixed = self.is_strong is None or self.is_strong[draw.row]
        if clip.clip_id and self.waveform_mix is not None and is_mixed:
            clip = self._mixed(clip, self._alike(draw.row), self.waveform_mix, rng)
        return clip

    def _alike(self, index: int) -> Sequence[int] | NDArray[np.intp]:
        """Returns the rows that may stand in for a row, in order."""
        if self._halves is None or self.is_strong is None:
            return range(len(self))
        return self._halves[int(self.is_strong[index])]

    def _read(self, index: int, rng: np.random.Generator) -> Clip:
        skipped: list[Skipped] = []
        alike = self._alike(index)
        place = index if self._halves is None else int(np.searchsorted(alike, index))
        tries = min(MAX_REPLACEMENTS, len(alike)) if self.replace_unreadable else 1
        for offset in range(tries):
            row = self.rows[int(alike[(place + offset) % len(alike)])]
            try:
                clip = self.reader.read(row, rng)
            except UnreadableClip as error:
                skipped.append(Skipped(str(row["video_id"]), str(error)))
            else:
                return clip._replace(skipped=tuple(skipped))
        if self.replace_unreadable:
            raise UnreadableClip(
                f"{tries} clips in a row could not be read, the last one, "
                f"{skipped[-1].clip_id}, because {skipped[-1].reason}; check the data"
            )
        return _empty_place(skipped)

    def _mixed(
        self,
        clip: Clip,
        alike: Sequence[int] | NDArray[np.intp],
        mix: WaveformMix,
        rng: np.random.Generator,
    ) -> Clip:
        draw = mix.draw(len(alike), rng)
        if draw is None:
            return clip
        partner = self._read(int(alike[draw.partner]), rng)
        skipped = clip.skipped + partner.skipped
        if not partner.clip_id:
            return clip._replace(skipped=skipped)
        if self.augment is not None:
            partner = _augmented(partner, self.augment, rng)
        waveform = mix.mix(clip.waveform.numpy(), partner.waveform.numpy(), draw.weight)
        share, strong = 1 - draw.weight, clip.strong
        if strong is not None and partner.strong is not None:
            strong = mix.mix_labels(strong, partner.strong, draw.weight)
        return Clip(
            clip_id=clip.clip_id,
            waveform=torch.from_numpy(waveform),
            labels=mix.mix_labels(clip.labels, partner.labels, draw.weight),
            labelled=mix.mix_labels(clip.labelled, partner.labelled, draw.weight),
            partner_id=partner.clip_id,
            partner_share=share,
            skipped=skipped,
            strong=strong,
            strong_known=draw.weight * clip.strong_known + share * partner.strong_known,
            moved_samples=clip.moved_samples,
            partner_moved_samples=partner.moved_samples,
        )


class ClipStream(torch.utils.data.IterableDataset):
    """A streamed data set of clips, for data that is not on the disk.

    The random changes of a clip are a function of (seed, epoch, clip id), because
    positions in a stream depend on the number of workers. Clips are shuffled within
    a buffer, without class balance. Each epoch starts again from the first clip, or,
    if clips are shuffled, from the first of the files, which are shuffled too.

    Arguments
    ---------
    rows : datasets.IterableDataset
        From ``load_rows(streaming=True)``.
    reader : ClipReader
        Turns rows into clips.
    augment : WaveformAugment | None
        Gain and roll, for training.
    shuffle_buffer : int
        Number of clips from which the next one is drawn; 0 keeps the order.
    clips_per_epoch : int | None
        Clips per epoch over all processes; the stream repeats as needed. None: the
        whole stream once.
    seed : int
        Seeds the shuffling and the random changes of clips.
    rank : int
        Rank of this process.
    world_size : int
        Number of processes, which share the stream.
    left_out : Container of str
        Ids of clips to leave out without decoding them.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        reader: ClipReader,
        augment: WaveformAugment | None = None,
        shuffle_buffer: int = 0,
        clips_per_epoch: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        left_out: Container[str] = (),
    ) -> None:
        if world_size > 1 and clips_per_epoch is None:
            raise ValueError(
                f"a stream shared by {world_size} processes needs clips_per_epoch, or "
                "the process with the most clips would wait for the others forever; "
                "set it to the number of clips per epoch over all processes"
            )
        if shuffle_buffer:
            rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
        if world_size > 1:
            rows = split_dataset_by_node(rows, rank, world_size)
        if clips_per_epoch is not None:
            rows = rows.repeat(None)
        self.rows = rows
        self.reader = reader
        self.augment = augment
        self.clips_per_epoch = clips_per_epoch
        self.seed = seed
        self.world_size = world_size
        self.left_out = left_out
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; the Brain calls this before each one."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[Clip]:
        remaining = self._clips_of_this_worker()
        skipped: list[Skipped] = []
        for row in self.rows:
            if remaining <= 0:
                break
            if str(row["video_id"]) in self.left_out:
                continue
            try:
                clip = self.reader.read(row)
            except UnreadableClip as error:
                skipped.append(Skipped(str(row["video_id"]), str(error)))
                if self.clips_per_epoch is not None and len(skipped) > MAX_REPLACEMENTS:
                    raise UnreadableClip(
                        f"{len(skipped)} clips in a row could not be read, the last "
                        f"because {error}; check the data"
                    ) from error
                continue
            if self.augment is not None:
                entropy = [self.seed, self.epoch, *clip.clip_id.encode()]
                clip = _augmented(clip, self.augment, np.random.default_rng(entropy))
            yield clip._replace(skipped=tuple(skipped))
            skipped, remaining = [], remaining - 1
        if skipped:
            yield _empty_place(skipped)

    def _clips_of_this_worker(self) -> float:
        if self.clips_per_epoch is None:
            return math.inf
        share = self.clips_per_epoch // self.world_size
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            return share
        # Workers share the files, so workers beyond the number of files get none.
        busy = min(worker.num_workers, self.rows.num_shards)
        if worker.id >= busy:
            return 0
        return share // busy + (worker.id < share % busy)


def _augmented(clip: Clip, augment: WaveformAugment, rng: np.random.Generator) -> Clip:
    draw = augment.draw(rng)
    waveform = augment.changed(clip.waveform.numpy(), draw)
    labels = draw.labels(clip.labels, len(waveform))
    clip = clip._replace(waveform=torch.from_numpy(waveform), labels=labels)
    if clip.strong is None:
        return clip
    strong = draw.labels(clip.strong, len(waveform))
    return clip._replace(strong=strong, moved_samples=draw.shift_samples)


def _empty_place(skipped: Sequence[Skipped]) -> Clip:
    """Returns a placeholder, of which ``collate`` keeps only the skipped clips."""
    nothing = torch.zeros(0)
    return Clip("", nothing, nothing, torch.tensor(0.0), skipped=tuple(skipped))


def collate(clips: Sequence[Clip]) -> ClipBatch:
    """Stacks clips into a batch; placeholders only add to the skipped clips."""
    present = [clip for clip in clips if clip.clip_id]
    strong = [clip.strong for clip in present if clip.strong is not None]
    known = [clip.strong_known for clip in present]
    moved = [clip.moved_samples for clip in present]
    partner_moved = [clip.partner_moved_samples for clip in present]
    return ClipBatch(
        clip_id=[clip.clip_id for clip in present],
        waveform=_stack([clip.waveform for clip in present]),
        labels=_stack([clip.labels for clip in present]),
        labelled=_stack([clip.labelled for clip in present]),
        partner_id=[clip.partner_id for clip in present],
        partner_share=torch.tensor([clip.partner_share for clip in present]),
        skipped=[skipped for clip in clips for skipped in clip.skipped],
        strong=_stack(strong) if strong else None,
        strong_known=torch.tensor(known) if strong else None,
        moved_samples=torch.tensor(moved) if strong else None,
        partner_moved_samples=torch.tensor(partner_moved) if strong else None,
    )


def _stack(parts: list[Tensor]) -> Tensor:
    # In a worker, default_collate stacks into memory shared with the main process;
    # torch.stack would cost another copy, and as much memory again.
    return default_collate(parts) if parts else torch.zeros(0, 0)
