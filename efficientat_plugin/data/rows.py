"""From the rows of a Hugging Face data set to clips.

``load_rows`` finds a split in the ``agkphysics/AudioSet`` schema (``video_id``,
``audio``, ``labels``) and never lets `datasets` decode; ``Clips`` and ``ClipStream``
decode with soundfile, resample with soxr, and cut or pad to one length.
"""

import csv
import io
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import soundfile
import soxr
import torch
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray

from efficientat_plugin.contracts import Clip, ClipBatch, Skipped
from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES, youtube_id
from efficientat_plugin.data.mixing import WaveformAugment, WaveformMix
from efficientat_plugin.data.sampling import Draw
from efficientat_plugin.data.targets import LabelSummary, LabelTable, summarize_labels

logger = logging.getLogger(__name__)

COLUMNS = ("video_id", "audio", "labels")
SAMPLE_RATES = (1_000, 768_000)  # Hz; a header beyond these is taken for damaged
# Read beyond the cut, so that the resampler's filter rings on sound, not on its end.
MARGIN_SECONDS = 0.1
BLOCK_FRAMES = 65536
MAX_REPLACEMENTS = 100
HUB_TIMEOUT_SECONDS = 10


class UnreadableClip(ValueError):
    """Sound that no clip can be made of; its text says why."""


# --- Finding the rows -----------------------------------------------------------


def load_rows(
    dataset: str,
    split: str,
    streaming: bool = False,
    config: str | None = None,
    cache_dir: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """A split in the AudioSet schema, undecoded, with its three columns alone.

    Arguments
    ---------
    dataset : str
        Hub id; or a folder of Parquet files (``data/<split>/*.parquet``,
        ``<split>/*.parquet`` or ``<split>*.parquet``), of ``save_to_disk``, or of
        audio files with the official ``<split>_segments.csv``; or a Parquet file.
    split : str
        Its name; several, joined by "+", follow each other.
    streaming : bool
        Rows in passing, for what does not fit the disk: an ``IterableDataset``.
    config : str | None
        Of a hub data set.
    cache_dir : str | None
        Where `datasets` keeps what it prepares; None: its default.

    Raises
    ------
    FileNotFoundError
        If nothing of that form is there.
    ValueError
        If a column is missing.
    """
    parts = []
    names = split.split("+")
    path = Path(dataset).expanduser()
    if len(names) > 1 and (path.is_file() or (path / "state.json").is_file()):
        raise ValueError(
            f"{dataset} is one split, but split={split!r} names {len(names)}; name one"
        )
    for name in names:
        rows = _load_split(dataset, name, streaming, config, cache_dir)
        found = rows.column_names or list(next(iter(rows)))
        missing = [column for column in COLUMNS if column not in found]
        if missing:
            raise ValueError(
                f"{dataset} ({name}) has no column {', '.join(missing)}; the AudioSet "
                f"schema is {', '.join(COLUMNS)}, and found were {', '.join(found)}"
            )
        rows = rows.select_columns(list(COLUMNS))
        # Parquet remembers an Audio column, which would decode by torchcodec.
        parts.append(rows.cast_column("audio", datasets.Audio(decode=False)))
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _load_split(
    dataset: str, split: str, streaming: bool, config: str | None, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    path = Path(dataset).expanduser()
    if not path.exists():
        return _load_hub(dataset, split, streaming, config, cache_dir)
    saved = next(
        (
            folder
            for folder in (path, path / split)
            if (folder / "state.json").is_file()
        ),
        None,
    )
    if saved is not None:
        rows = datasets.load_from_disk(str(saved))
        return rows.to_iterable_dataset() if streaming else rows
    segments = path / f"{split}_segments.csv"
    if segments.is_file():
        rows = _read_segments(segments)
        return rows.to_iterable_dataset() if streaming else rows
    files = _parquet_files(path, split)
    if not files:
        raise FileNotFoundError(
            f"{path} holds no split {split!r}: expected {split}/*.parquet, "
            f"data/{split}/*.parquet, {split}*.parquet, {split}_segments.csv with "
            "audio files, or a save_to_disk folder; pass the right folder or split"
        )
    return datasets.load_dataset(
        "parquet",
        data_files=[str(file) for file in files],
        split="train",
        streaming=streaming,
        cache_dir=cache_dir,
    )


def _load_hub(
    dataset: str, split: str, streaming: bool, config: str | None, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    if dataset.count("/") > 1 or dataset.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"there is no file or folder {dataset}; pass one")
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            # Says at once what `datasets` would say after minutes of trying again.
            huggingface_hub.HfApi().dataset_info(dataset, timeout=HUB_TIMEOUT_SECONDS)
        return datasets.load_dataset(
            dataset, config, split=split, streaming=streaming, cache_dir=cache_dir
        )
    except Exception as error:  # the hub raises errors of many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise FileNotFoundError(
            f"{dataset!r} is neither a file or folder here nor a data set that the "
            f"hub gives ({reason}); pass a local path or check the network"
        ) from error


def _parquet_files(path: Path, split: str) -> list[Path]:
    if path.suffix == ".parquet":
        return [path]
    for folder in (path / "data", path):
        for pattern in (f"{split}/*.parquet", f"{split}*.parquet"):
            files = sorted(folder.glob(pattern))
            if files:
                return files
    return []


def _read_segments(segments: Path) -> datasets.Dataset:
    """Rows of an official segments CSV for whose clips there is an audio file."""
    files = {
        youtube_id(file.stem): str(file)
        for file in sorted(segments.parent.rglob("*"))
        if file.suffix.lower() in AUDIO_SUFFIXES
    }
    ids, labels, absent = [], [], 0
    with open(segments, encoding="utf-8", newline="") as file:
        lines = (line for line in file if not line.startswith("#"))
        for row in csv.reader(lines, skipinitialspace=True):
            if len(row) < 4:
                continue
            if row[0] not in files:
                absent += 1
                continue
            ids.append(row[0])
            labels.append(row[3].split(","))
    if not ids:
        raise FileNotFoundError(
            f"none of the {absent} clips in {segments} has an audio file below "
            f"{segments.parent}; name the files by YouTube id, {AUDIO_SUFFIXES}"
        )
    logger.info("%s: %d clips, %d without a file", segments.name, len(ids), absent)
    audio = [{"bytes": None, "path": files[clip_id]} for clip_id in ids]
    # A plain struct: an Audio feature could not be built without torchcodec.
    return datasets.Dataset.from_dict(
        {"video_id": ids, "audio": audio, "labels": labels}
    )


def summarize_rows(rows: datasets.Dataset, table: LabelTable) -> LabelSummary:
    """Ids and labels of map-style rows; reads no audio."""
    metadata = rows.select_columns(["video_id", "labels"])
    ids: list[str] = []
    labels: list[Sequence[str] | None] = []
    for batch in metadata.iter(batch_size=10_000):
        ids += batch["video_id"]
        labels += batch["labels"]
    return summarize_labels(ids, labels, table)


# --- Decoding -------------------------------------------------------------------


def decode(
    audio: dict[str, Any] | bytes | str | Path, sample_rate: int, num_samples: int
) -> NDArray[np.float32]:
    """The start of a sound file: mono, resampled, cut or zero-padded.

    Reads no more of the file than it needs. Resamples with soxr's high quality,
    which moves the probabilities of a tagger by 4e-4 at most.

    Arguments
    ---------
    audio : dict | bytes | str | Path
        What an undecoded ``Audio`` column holds (``bytes`` and ``path``), the bytes
        of a file, or its path. WAV, FLAC, OGG, Opus or MP3.
    sample_rate : int
        Of the result, Hz.
    num_samples : int
        Of the result.

    Returns
    -------
    NDArray
        [num_samples], float32.

    Raises
    ------
    UnreadableClip
        If there is no file, no sound in it, or values that are not finite.
    """
    try:
        with soundfile.SoundFile(_open(audio)) as sound:
            rate = sound.samplerate
            if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
                raise UnreadableClip(f"its header claims a sample rate of {rate} Hz")
            seconds = num_samples / sample_rate + MARGIN_SECONDS
            blocks = list(_mono_blocks(sound, math.ceil(seconds * rate)))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # soundfile names what was bytes by its address in memory.
        reason = re.sub(r"^Error opening <.*?>: ", "", str(error))
        raise UnreadableClip(f"not decodable: {reason}") from error
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(waveform):
        raise UnreadableClip("it has no samples")
    if not np.isfinite(waveform).all():
        raise UnreadableClip("it has samples that are not finite")
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate, quality="HQ")
    waveform = waveform[:num_samples]
    return np.pad(waveform, (0, num_samples - len(waveform)))


def _mono_blocks(
    sound: soundfile.SoundFile, num_frames: int
) -> Iterator[NDArray[np.float32]]:
    """Block by block, so that many channels never stand in memory at once."""
    # Not SoundFile.blocks, which goes by the length that the header claims: where a
    # file breaks off before, it gives what happens to stand in memory for sound.
    while num_frames > 0:
        block = sound.read(
            min(BLOCK_FRAMES, num_frames), dtype="float32", always_2d=True
        )
        if not len(block):
            return
        yield block.mean(axis=1)
        num_frames -= len(block)


def _open(audio: dict[str, Any] | bytes | str | Path) -> io.BytesIO | str:
    content: Any = audio
    if isinstance(audio, dict):
        content = audio.get("bytes")
        if content is None:
            content = audio.get("path")
    if isinstance(content, bytes):
        return io.BytesIO(content)
    if isinstance(content, str | Path):
        return str(content)
    raise UnreadableClip("the row holds neither bytes nor the path of a file")


class ClipReader:
    """Makes a ``Clip`` of a row.

    Arguments
    ---------
    labels : LabelTable
        What K means.
    clip_seconds : float
        Length of every clip; longer sound is cut, shorter zero-padded.
    sample_rate : int
        Hz.
    """

    def __init__(
        self, labels: LabelTable, clip_seconds: float = 10.0, sample_rate: int = 32000
    ) -> None:
        if clip_seconds <= 0:
            raise ValueError(f"clip_seconds={clip_seconds} must be above 0")
        self.labels = labels
        self.sample_rate = sample_rate
        self.num_samples = round(clip_seconds * sample_rate)

    def read(self, row: dict[str, Any]) -> Clip:
        """Decodes a row; ``UnreadableClip`` where that cannot be."""
        if not row["video_id"]:
            raise UnreadableClip("its video_id is empty")
        waveform = decode(row["audio"], self.sample_rate, self.num_samples)
        # What the table does not have was counted when the data was summed up.
        indices, _ = self.labels.indices(row["labels"] or ())
        return Clip(
            clip_id=str(row["video_id"]),
            waveform=torch.from_numpy(waveform),
            labels=self.labels.multi_hot(indices),
            labelled=float(bool(indices)),
        )


# --- Data sets ------------------------------------------------------------------


class Clips(torch.utils.data.Dataset):
    """Map-style clips; works in forked and in spawned loader workers.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``load_rows``.
    reader : ClipReader
        Makes clips of rows.
    augment : WaveformAugment | None
        Gain and roll, for training.
    waveform_mix : WaveformMix | None
        Mixing of two clips, for training.
    seed : int
        Of what happens to a clip at random, with the epoch and the position of the
        ``Draw`` that asks for it.
    replace_unreadable : bool
        True puts the next readable row in the place of an unreadable one, so that
        training batches keep their size; False leaves the place empty.

    Example
    -------
    >>> from efficientat_plugin.data.targets import LabelTable
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
    ) -> None:
        self.rows = rows
        self.reader = reader
        self.augment = augment
        self.waveform_mix = waveform_mix
        self.seed = seed
        self.replace_unreadable = replace_unreadable

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> Clip:
        if not isinstance(draw, Draw):
            draw = Draw(row=int(draw), epoch=0, position=int(draw))
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position])
        clip = self._read(draw.row)
        if clip.clip_id and self.augment is not None:
            clip = _augmented(clip, self.augment, rng)
        if clip.clip_id and self.waveform_mix is not None:
            clip = self._mixed(clip, self.waveform_mix, rng)
        return clip

    def _read(self, index: int) -> Clip:
        skipped: list[Skipped] = []
        tries = min(MAX_REPLACEMENTS, len(self)) if self.replace_unreadable else 1
        for offset in range(tries):
            row = self.rows[(index + offset) % len(self)]
            try:
                clip = self.reader.read(row)
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

    def _mixed(self, clip: Clip, mix: WaveformMix, rng: np.random.Generator) -> Clip:
        draw = mix.draw(len(self), rng)
        if draw is None:
            return clip
        partner = self._read(draw.partner)
        skipped = clip.skipped + partner.skipped
        if not partner.clip_id:
            return clip._replace(skipped=skipped)
        if self.augment is not None:
            partner = _augmented(partner, self.augment, rng)
        share = 1 - draw.weight
        waveform = mix.mix(clip.waveform.numpy(), partner.waveform.numpy(), draw.weight)
        return Clip(
            clip_id=clip.clip_id,
            waveform=torch.from_numpy(waveform),
            labels=draw.weight * clip.labels + share * partner.labels,
            labelled=draw.weight * clip.labelled + share * partner.labelled,
            partner_id=partner.clip_id,
            partner_share=share,
            skipped=skipped,
        )


class ClipStream(torch.utils.data.IterableDataset):
    """Clips in passing, of data that is not on the disk.

    What happens to a clip at random is a function of (seed, epoch, clip id), since
    a stream's positions depend on the number of workers. Clips are shuffled within a
    buffer and drawn without class balance; an epoch begins with the first of them,
    or of the files, which are shuffled too.

    Arguments
    ---------
    rows : datasets.IterableDataset
        From ``load_rows(streaming=True)``.
    reader : ClipReader
        Makes clips of rows.
    augment : WaveformAugment | None
        Gain and roll, for training.
    shuffle_buffer : int
        Clips to choose the next one from; 0 keeps the order.
    clips_per_epoch : int | None
        Clips of an epoch over all processes, the stream repeated as needed; None:
        the whole stream once.
    seed : int
        Of the shuffling and of what happens to a clip.
    rank : int
        Of this process.
    world_size : int
        Number of processes, which share the stream.
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
    ) -> None:
        if world_size > 1 and clips_per_epoch is None and shuffle_buffer:
            raise ValueError(
                "a training stream shared by several processes needs clips_per_epoch, "
                "or the longest share would wait for the others for ever"
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
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Brain before each epoch."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[Clip]:
        remaining = self._clips_of_this_worker()
        skipped: list[Skipped] = []
        for row in self.rows:
            if remaining <= 0:
                break
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
        # Files are dealt out to the workers, so that those beyond get none.
        busy = min(worker.num_workers, self.rows.num_shards)
        if worker.id >= busy:
            return 0
        return share // busy + (worker.id < share % busy)


def _augmented(clip: Clip, augment: WaveformAugment, rng: np.random.Generator) -> Clip:
    waveform = augment(clip.waveform.numpy(), rng)
    return clip._replace(waveform=torch.from_numpy(waveform))


def _empty_place(skipped: Sequence[Skipped]) -> Clip:
    """A clip that is none: what ``collate`` leaves out, but for who was skipped."""
    nothing = torch.zeros(0)
    return Clip("", nothing, nothing, 0.0, skipped=tuple(skipped))


def collate(clips: Sequence[Clip]) -> ClipBatch:
    """Stacks clips; empty places only leave the names of who was skipped."""
    present = [clip for clip in clips if clip.clip_id]
    nothing = torch.zeros(0, 0)
    return ClipBatch(
        clip_id=[clip.clip_id for clip in present],
        waveform=torch.stack([c.waveform for c in present]) if present else nothing,
        labels=torch.stack([c.labels for c in present]) if present else nothing,
        labelled=torch.tensor([clip.labelled for clip in present]),
        partner_id=[clip.partner_id for clip in present],
        partner_share=torch.tensor([clip.partner_share for clip in present]),
        skipped=[skipped for clip in clips for skipped in clip.skipped],
    )
