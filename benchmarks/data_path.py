"""Clips a second of a loader worker, from storage to batch, by what is stored.

> python benchmarks/data_path.py PATH_IN_AUDIOSET_SCHEMA --split bal_train+eval

Clips of 10 s, joined from shorter ones, as sources keep them, as prepared data keeps
them in each codec, and as mp3 in HDF5 read with PyAV, as the published code does (left
out without ``h5py`` and ``av``). One worker process; data sets take turns in every
round. Clips per second are those of the time that the worker's CPU was busy, since
other work on the machine changes the clock's. Files are in the page cache. Linux alone.
"""

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from efficientat_plugin.contracts import Clip
from efficientat_plugin.data.clips import Clips, collate
from efficientat_plugin.data.decoding import ClipReader, Resampler, decode
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.prepare.encoding import CODECS, ClipEncoder
from efficientat_plugin.data.prepare.preparation import prepare
from efficientat_plugin.data.rows import load_rows

try:
    import av
    import h5py
except ImportError:
    av = h5py = None

SECONDS, RATE, STUDIO = 10, 32000, 48000
BATCH_SIZE = 16
GPU = 1000  # clips per second that training takes
AS_THEY_ARE = {
    "FLAC, 48 kHz, 24 bits": (48000, {"format": "FLAC", "subtype": "PCM_24"}),
    "FLAC, 44.1 kHz, 16 bits": (44100, {"format": "FLAC", "subtype": "PCM_16"}),
    "MP3, 44.1 kHz": (44100, {"format": "MP3"}),
}
PUBLISHED = "HDF5, MP3, 32 kHz, PyAV"


class Candidate(NamedTuple):
    """A data set to read, and the room that a clip takes in it."""

    name: str
    clips: Dataset
    bytes_per_clip: float


class Hdf5Clips(Dataset):
    """Clips of an HDF5 file of mp3 bytes; opened by the worker."""

    def __init__(self, path: Path, clip_ids: list[str], num_samples: int) -> None:
        self.path, self.clip_ids, self.num_samples = path, clip_ids, num_samples
        self.file: Any = None

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> Clip:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        content = self.file["mp3"][index].tobytes()
        with av.open(io.BytesIO(content)) as container:
            frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        waveform = np.concatenate(frames, axis=1)[0, : self.num_samples]
        waveform = np.pad(waveform, (0, self.num_samples - len(waveform)))
        labels = torch.zeros(len(audioset_labels()))
        return Clip(
            self.clip_ids[index], torch.from_numpy(waveform), labels, torch.tensor(1.0)
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="eval")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=None, help="of 10 s, at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        rows = load_rows(arguments.dataset, arguments.split)
        sounds = list(tqdm(joined(rows), desc="Joining", unit="clip"))
        sounds = sounds[: arguments.clips]
        candidates = make_candidates(sounds, Path(folder))
        print_reading(candidates, arguments.rounds)
    if h5py is None:
        print("\nh5py and av are not installed: the published way was left out.")


def joined(rows: datasets.Dataset) -> Iterator[NDArray[np.float32]]:
    """Clips of 10 s at 48 kHz, of as many rows as it takes."""
    parts: list[NDArray[np.float32]] = []
    for row in rows:
        blocks = decode(row["audio"], STUDIO, 5 * STUDIO)
        parts.append(blocks)
        if len(parts) == 2:
            yield np.concatenate(parts)
            parts = []


def at_rate(sound: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """A sound at 48 kHz at another rate."""
    resampler = Resampler(STUDIO, rate)
    return np.concatenate([resampler.feed(sound), resampler.finish()])


def make_candidates(sounds: list[NDArray[np.float32]], folder: Path) -> list[Candidate]:
    """Each way to store the clips, written to the folder."""
    reader = ClipReader(audioset_labels(), SECONDS, RATE)
    made = []
    for name, (rate, options) in AS_THEY_ARE.items():
        rows = []
        for number, sound in enumerate(tqdm(sounds, desc=name, unit="clip")):
            file = io.BytesIO()
            soundfile.write(file, np.clip(at_rate(sound, rate), -1, 1), rate, **options)
            audio = {"bytes": file.getvalue(), "path": None}
            rows.append({"video_id": f"{number}", "audio": audio, "labels": ["/m/a"]})
        saved = folder / "sources" / name
        datasets.Dataset.from_list(rows).save_to_disk(str(saved))
        size = statistics.mean(len(row["audio"]["bytes"]) for row in rows)
        clips = Clips(load_rows(str(saved), "any"), reader)
        made.append(Candidate(f"{name}, as it is", clips, size))
    source = made[0].clips.rows  # AudioSet's own form
    print("| prepared as | kbit/s | CPU ms per clip to prepare | correlation |")
    print("|---" * 4 + "|")
    for codec in CODECS:
        rate = STUDIO if codec == "opus" else RATE
        busy = time.process_time()
        done = prepare({"all": source}, ClipEncoder(codec, rate), folder / codec)
        busy = time.process_time() - busy
        rows = load_rows(str(done.folder), "all")
        size = done.bytes_out / done.num_clips
        made.append(
            Candidate(f"{codec}, {rate // 1000} kHz", Clips(rows, reader), size)
        )
        print(
            f"| {codec}, {rate // 1000} kHz | {size * 8 / 1000 / SECONDS:.0f} | "
            f"{1000 * busy / done.num_clips:.0f} | {done.correlation:.4f} |",
            flush=True,
        )
        if codec == "mp3" and h5py is not None:
            clips = write_hdf5(folder / "clips.h5", rows)
            made.append(Candidate(PUBLISHED, clips, size))
    return made


def write_hdf5(path: Path, rows: datasets.Dataset) -> Hdf5Clips:
    """The same mp3 files, a row of bytes each."""
    with h5py.File(path, "w") as file:
        kind = h5py.vlen_dtype(np.uint8)
        stored = file.create_dataset("mp3", (len(rows),), dtype=kind)
        for number, row in enumerate(rows):
            stored[number] = np.frombuffer(row["audio"]["bytes"], np.uint8)
    return Hdf5Clips(path, list(rows["video_id"]), SECONDS * RATE)


def print_reading(candidates: list[Candidate], num_rounds: int) -> None:
    """Reads each data set in every round."""
    rounds: dict[str, list[tuple[float, float]]] = {}
    readings = [(each.name, reading(each.clips)) for each in candidates]
    for number in tqdm(range(num_rounds + 1), desc="Reading", unit="round"):
        shift = number % len(readings)
        for name, read in readings[shift:] + readings[:shift]:
            found = read()
            if number:  # the first one warms up
                rounds.setdefault(name, []).append(found)
    print(f"\nN = {len(candidates[0].clips)} clips, {num_rounds} rounds.\n")
    print(
        "| stored as | KiB per clip | clips/s per worker | lowest to highest | "
        "by the clock | times the published | workers for a GPU |"
    )
    print("|---" * 7 + "|")
    for name, _, size in candidates:
        speeds = [busy for busy, _ in rounds[name]]
        published = [busy for busy, _ in rounds.get(PUBLISHED, [])]
        ratios = [one / other for one, other in zip(speeds, published, strict=False)]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        speed = statistics.median(speeds)
        clock = statistics.median(wall for _, wall in rounds[name])
        print(
            f"| {name} | {size / 1024:.0f} | {speed:.0f} | "
            f"{min(speeds):.0f} to {max(speeds):.0f} | {clock:.0f} | {ratio} | "
            f"{GPU / speed:.1f} |"
        )


def reading(clips: Dataset) -> Callable[[], tuple[float, float]]:
    """Reads all clips with one worker: clips per busy second, and per second."""
    before = {child.pid for child in multiprocessing.active_children()}
    loader = DataLoader(
        clips,
        BATCH_SIZE,
        num_workers=1,
        collate_fn=collate,
        persistent_workers=True,
    )
    for _ in loader:
        pass
    (pid,) = {child.pid for child in multiprocessing.active_children()} - before

    def read() -> tuple[float, float]:
        start, busy = time.perf_counter(), busy_seconds(pid)
        for _ in loader:
            pass
        busy, taken = busy_seconds(pid) - busy, time.perf_counter() - start
        return len(clips) / busy, len(clips) / taken

    return read


def busy_seconds(pid: int) -> float:
    """CPU time of another process, all of its threads."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


if __name__ == "__main__":
    main()
