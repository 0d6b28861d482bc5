"""Very many sounds, rows and logits: memory for each stays small, and so does time."""

import json
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from exported_models import random_weights
from lengths import short_and_full
from memory_use import Course, Section, alone, here, linux, megabytes, traced

from efficientat_plugin.cli import main, outputs
from efficientat_plugin.cli.resumed_output import KeptResults
from efficientat_plugin.data.labelled import open_labelled, runs_of
from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.prepare.preparation import prepare
from efficientat_plugin.data.rows import load_rows, summarize_rows
from efficientat_plugin.data.sampling import Draws, class_balanced_weights
from efficientat_plugin.data.summary import describe
from efficientat_plugin.evaluation.metrics import classification_scores
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.teachers.store import verify as verification
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import verify
from efficientat_plugin.teachers.store.writer import StoreWriter

pytestmark = linux

# --- A folder of many sounds --------------------------------------------------------

SOUND_RATE = 16000  # Hz
NUM_FOLDERS, ONE_DAMAGED_IN = 20, 97  # so that they are in all folders
NAMES = ("dog", "büro im märz", "音の海", "🎵", "it's 'one'; \"two\"", "n" * 200)
GROWTH = 24.0  # MB that a process may come to hold after a quarter of the way


def write_sounds(folder: Path, number: int, seed: int) -> int:
    """Sounds of 0.1 to 1 s in folders within folders; returns how many are damaged."""
    rng, num_damaged = np.random.default_rng(seed), 0
    sound = (0.5 * synthesised(20 * SOUND_RATE, SOUND_RATE, 3) * 32767).astype(np.int16)
    for n in range(number):
        below = folder / f"class {n % NUM_FOLDERS}" / f"{n // 1000}"
        below.mkdir(parents=True, exist_ok=True)
        path = below / f"{NAMES[n % len(NAMES)]} {n}.wav"
        start = rng.integers(0, 19 * SOUND_RATE)
        length = rng.integers(SOUND_RATE // 10, SOUND_RATE)
        soundfile.write(path, sound[start : start + length], SOUND_RATE)
        if n % ONE_DAMAGED_IN == ONE_DAMAGED_IN // 2:
            num_damaged += 1
            path.write_bytes(
                (b"", b"no sound", path.read_bytes()[:40])[n // ONE_DAMAGED_IN % 3]
            )
    return num_damaged


def write_model(folder: Path, short_clips: str) -> Path:
    """A small student of clips of a second."""
    torch.manual_seed(0)
    student = random_weights(MN(20, width=0.1))
    student.options = {"num_classes": 20, "width": 0.1}
    student.front_end = {}
    names = [f"class {k}" for k in range(20)]
    labels = LabelTable(names, names)
    model = TrainedModel(student, labels, "multiclass", 1.0, short_clips)
    scores = {"test": classification_scores(np.eye(20), np.eye(20))}
    return write_model_folder(folder, model, Provenance("x", None, "x", "", scores))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By what becomes of short clips, a model folder."""
    folder = tmp_path_factory.mktemp("models")
    return {how: write_model(folder / how, how) for how in ("repeat", "as_is")}


def one(*_arguments):
    """What a command comes by once for a sound."""
    return 1


def several(_kept, sounds, _rows):
    """And several at once."""
    return len(sounds)


STEPS = {
    "tag": (KeptResults, "add", several),
    "scan": (outputs.JsonLinesWriter, "write", one),
    "embed": (KeptResults, "add", several),
}


def words_of(command, folder, model, output) -> list[str]:
    """What stands on the command line."""
    form = [] if command == "embed" else ["--format", "jsonl", "--threshold", "0"]
    options = ["--model", str(model), "--device", "cpu", "--output", str(output)]
    return [command, str(folder), *form, *options]


def commanded(words, number):
    """A command, and what it held on the way."""
    course, done = Course(number), 0
    owner, name, sounds_in = STEPS[words[0]]
    step = getattr(owner, name)

    def step_and_look(*arguments):
        nonlocal done
        step(*arguments)
        done += sounds_in(*arguments)
        course.look(done)

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, step_and_look)
        assert main(words) == 1  # some were damaged
    return course.growth, megabytes("VmHWM"), course.pace


def killed(words, number):
    """A command that writes one file, killed at a sound."""
    add, done = KeptResults.add, 0

    def add_or_die(kept, sounds, rows):
        nonlocal done
        add(kept, sounds, rows)
        done += len(sounds)
        if done >= number:
            os.kill(os.getpid(), signal.SIGKILL)

    KeptResults.add = add_or_die
    torch.set_num_threads(1)  # as many as here
    main(words)


@pytest.mark.parametrize(
    ("command", "short_clips"),
    [("tag", "repeat"), ("tag", "as_is"), ("scan", "repeat"), ("embed", "repeat")],
)
@short_and_full(short=100, full=20_000)  # sounds
def test_a_command(tries, command, short_clips, models, seed, figures, tmp_path):
    folder = tmp_path / "sounds"
    num_damaged = write_sounds(folder, tries, seed)
    output = tmp_path / ("whole.npz" if command == "embed" else "whole.jsonl")
    words = words_of(command, folder, models[short_clips], output)
    run = here if tries == 100 else alone
    growth, peak, pace = run(commanded, words, tries - num_damaged)
    if command == "embed":
        found = np.load(output)["names"].tolist()
    else:
        lines = output.read_text(encoding="utf-8").splitlines()
        paths = [json.loads(line)["sound"] for line in lines]
        found = [Path(path).relative_to(folder).as_posix() for path in paths]
    assert len(set(found)) == tries - num_damaged
    assert found == sorted(found, key=Path)
    assert growth < GROWTH
    figures(
        f"{command}, short clips {short_clips}",
        f"{tries} sounds, {num_damaged} damaged",
        f"{pace} (by fifths)",
        f"+{growth:.1f} MB from a quarter of the way on",
        f"peak {peak:.0f} MB",
    )


@pytest.mark.parametrize("command", ["tag", "embed"])
@short_and_full(short=0, full=2000)  # sounds
def test_a_killed_command_resumes(
    tries, command, models, seed, figures, tmp_path, capsys
):
    if not tries:
        pytest.skip("the short form is tests/test_resumed_output.py, without a kill")
    folder = tmp_path / "sounds"
    num_damaged = write_sounds(folder, tries, seed)
    suffix = "npz" if command == "embed" else "jsonl"
    whole, resumed = tmp_path / f"whole.{suffix}", tmp_path / f"resumed.{suffix}"
    assert main(words_of(command, folder, models["repeat"], whole)) == 1
    again, num_kills = words_of(command, folder, models["repeat"], resumed), 0
    for number in (tries // 2, tries // 7, tries // 10):
        with pytest.raises(BrokenProcessPool):
            alone(killed, again, number)
        assert not resumed.exists()
        num_kills += 1
    capsys.readouterr()
    assert main(again) == 1
    printed = capsys.readouterr().err
    assert f"{num_damaged} of {tries} inputs could not be read" in printed
    assert resumed.read_bytes() == whole.read_bytes()
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {"sounds", whole.name, resumed.name}  # nothing is left
    figures(f"{command}, {tries} sounds", f"{num_kills} kills", "the same bytes")


def opened(folder):
    """A folder of sounds as the recipes open it."""
    datasets.disable_progress_bars()
    sections = {name: Section() for name in ("labelled", "described", "split", "rows")}
    with sections["labelled"]:
        clips = open_labelled(folder, {})
    with sections["described"]:
        describe(clips.rows)
    with sections["split"]:
        split = runs_of(clips.rows)["random"]
    with sections["rows"]:
        rows = load_rows(str(folder), None)
    numbers = [len(clips.rows), sum(map(len, split)), len(rows)]
    return numbers, {name: str(section) for name, section in sections.items()}


def prepared(folder, target, clips_per_shard):
    """A folder of sounds as prepared data."""
    datasets.disable_progress_bars()
    section = Section()
    with section:
        found = prepare(
            {"all": load_rows(str(folder), None)},
            ClipEncoder("flac", SOUND_RATE),
            target,
            clips_per_shard,
            max_unreadable_share=0.05,
        )
    return found.num_clips, found.num_skipped, section


@short_and_full(short=100, full=20_000)  # sounds
def test_a_folder_is_data(tries, seed, figures, tmp_path):
    folder = tmp_path / "sounds"
    num_damaged = write_sounds(folder, tries, seed)
    run = here if tries == 100 else alone
    numbers, sections = run(opened, folder)
    assert numbers == [tries] * 3
    num_clips, num_skipped, section = run(
        prepared, folder, tmp_path / "prepared", tries // 20
    )
    assert (num_clips, num_skipped) == (tries - num_damaged, num_damaged)
    assert section.more < 150  # MB, that it takes to encode sound at all
    for name, text in sections.items():
        figures(name, f"{tries} sounds", text)
    figures("prepared as FLAC", f"{tries} sounds", section)


# --- Rows without sound -------------------------------------------------------------

CLASSES = len(audioset_labels())
ROWS_AT_ONCE = 8192


MOST_ROW_BYTES = {  # of each row
    "opened": 100,
    "summed up": 320,
    "weighed": 120,
    "an epoch drawn": 80,
    "all drawn": 80,
    "unweighted": 80,
}


def ids_of(start: int, stop: int) -> list[str]:
    """Of eleven characters, in no order."""
    numbers = np.arange(start, stop) * 2654435761 % 99999999977  # a prime
    return [f"{number:011d}" for number in numbers.tolist()]


def classes_of(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """One to three of each row, one after the other, and how many of each.

    They are again the same after ``ROWS_AT_ONCE`` rows.
    """
    rows = np.arange(start, stop) % ROWS_AT_ONCE
    counts = 1 + rows % 3
    flat = np.repeat(rows * 7919, counts) + np.arange(counts.sum()) * 31
    # Some classes are rare
    return (flat % CLASSES) * (flat % 1009) // 1009, counts


def write_rows(folder: Path, number: int) -> Path:
    """AudioSet's schema, the sound left empty, in files of 100000 rows."""
    mids = pa.array(audioset_labels().mids)
    (folder / "data" / "train").mkdir(parents=True)
    for start in range(0, number, 100_000):
        stop = min(start + 100_000, number)
        classes, counts = classes_of(start, stop)
        ends = np.concatenate([[0], counts.cumsum()])
        labels = pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()), mids.take(classes)
        )
        nothing = [pa.nulls(stop - start, kind) for kind in (pa.binary(), pa.string())]
        audio = pa.StructArray.from_arrays(nothing, ["bytes", "path"])
        table = {"video_id": ids_of(start, stop), "audio": audio, "labels": labels}
        path = folder / "data" / "train" / f"{start:09d}.parquet"
        pq.write_table(pa.table(table), path)
    return folder


def read_rows(folder, clips_per_epoch):
    """Rows as training opens, weighs and draws them: sections by name."""
    datasets.disable_progress_bars()
    names = (
        "opened",
        "summed up",
        "weighed",
        "an epoch drawn",
        "all drawn",
        "unweighted",
    )
    sections = {name: Section() for name in names}
    with sections["opened"]:
        rows = load_rows(str(folder), "train", cache_dir=str(folder / "cache"))
    with sections["summed up"]:
        summary = summarize_rows(rows, audioset_labels())
    with sections["weighed"]:
        weights = class_balanced_weights(summary.indices, CLASSES)
    for name, length, weighted in (
        ("an epoch drawn", clips_per_epoch, weights),
        ("all drawn", None, weights),
        ("unweighted", None, None),
    ):
        with sections[name]:
            draws = Draws(len(rows), length, weighted)
            draws.set_epoch(1)
            assert sum(1 for _ in draws) == len(draws)
    assert summary.counts.sum() == sum(map(len, summary.indices))
    return len(summary.clip_ids), sections


MORE_THAN_TWICE = 2.2  # of bytes, for twice as many rows


@short_and_full(short=5000, full=2_000_000)  # rows
def test_rows(tries, figures, tmp_path):
    folder = write_rows(tmp_path / "rows", tries)
    if tries == 5000:
        twice = write_rows(tmp_path / "twice as many", 2 * tries)
        read_rows(folder, 100)  # with all imports
        some, more = (traced(read_rows, each, 100)[1] for each in (folder, twice))
        assert more < MORE_THAN_TWICE * some
        return
    number, sections = alone(read_rows, folder, 100_000)
    assert number == tries
    for name, section in sections.items():
        figures(name, f"{tries} rows", section)
        assert section.more < 50 + MOST_ROW_BYTES[name] * tries / 2**20


# --- Stored logits ------------------------------------------------------------------

ABOUT = {"teacher": "made up", "labels_sha256": audioset_labels().sha256}
ABOUT |= {"num_classes": CLASSES, "sample_rate": 32000, "clip_seconds": 10.0}
LOOKUPS = 1000


def clips_of(number):
    """Ids and classes, in passing."""
    for start in range(0, number, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, number)
        classes, counts = classes_of(start, stop)
        parts = np.split(classes, counts.cumsum()[:-1])
        yield from zip(
            ids_of(start, stop), (part.tolist() for part in parts), strict=False
        )


def write_store(path, number, seed):
    """Logits that know the classes of each clip, a few thousand clips at a time."""
    logits = np.random.default_rng(seed).standard_normal((ROWS_AT_ONCE, CLASSES))
    classes, counts = classes_of(0, ROWS_AT_ONCE)
    logits[np.repeat(np.arange(ROWS_AT_ONCE), counts), classes] += 4
    rows = logits.astype(np.float16)
    with StoreWriter(path, **ABOUT) as writer:
        for start in range(0, number, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, number)
            ids = ids_of(start, stop)
            writer.append(ids, rows[: len(ids)])


def use_store(path, number, seed):
    """A store as it is written, opened, looked up and verified: sections by name."""
    names = "written", "opened", f"{LOOKUPS} lookups of 32 clips", "verified"
    sections = {name: Section() for name in (*names, "opened to be gone on with")}
    with sections["written"]:
        write_store(path, number, seed)
    with sections["opened"]:
        store = LogitsStore(path)
    rng = np.random.default_rng(seed)
    with sections[names[2]]:
        for _ in range(LOOKUPS):
            rows = rng.integers(0, number, 32)
            asked = [ids_of(row, row + 1)[0] for row in rows.tolist()]
            assert store.lookup(asked).known.all()
            assert store.rows(asked).tolist() == rows.tolist()
    with sections["verified"]:
        verify(store, clips_of(number), ABOUT["labels_sha256"]).raise_if_bad()
    with sections["opened to be gone on with"]:
        StoreWriter(path, **ABOUT).close()
    size = sum(file.stat().st_size for file in path.iterdir())
    return size / 1e6, sections


@short_and_full(short=4000, full=2_000_000)  # clips
def test_a_store(tries, seed, figures, tmp_path, monkeypatch):
    if tries == 4000:
        # So that a sample of as many clips is looked at, whatever their number.
        monkeypatch.setattr(verification, "MAX_SAMPLE", 500)
        monkeypatch.setattr("test_wide.ROWS_AT_ONCE", 500)
        monkeypatch.setattr("test_wide.LOOKUPS", 20)
        some, more = (
            traced(use_store, tmp_path / str(number), number, seed)[1]
            for number in (tries, 2 * tries)
        )
        assert more < some + 200 * tries  # bytes, of the index
        return
    size, sections = alone(use_store, tmp_path / "store", tries, seed)
    for name, section in sections.items():
        figures(f"{size:.0f} MB", name, f"{tries} clips", section)
        assert section.more < 600  # MB: no array of all logits
