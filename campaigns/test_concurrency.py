"""Several processes write one store or one file, several threads share one tagger.

Processes are killed at random moments, and begin again. What they leave is never wrong:
what is there at any time can be read and is right, and one that nobody disturbs brings
it to its end.
"""

import collections
import random
import signal

import numpy as np
import pytest
import torch
from exported_models import content_of, random_weights, source_of
from lengths import short_and_full
from simultaneous import REFUSED, in_threads, some_line, start
from writers import CLIPS, embed, fill_store, values_of

from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.store.logits_store import LogitsStore

RATE = 32000


def let_them_write(draw, counts, work, *arguments):
    """Three processes, of which some are killed; the others end or are refused."""
    processes = [
        start(
            work, *arguments, draw.random(), dies_at=draw.choice([0, some_line(draw)])
        )
        for _ in range(3)
    ]
    for process in processes:
        process.join()
        assert process.exitcode in (0, REFUSED, -signal.SIGKILL)
        counts[process.exitcode] += 1


def check_store(path):
    """What is there is right; returns how many clips."""
    store = LogitsStore(path)
    clips = store.clip_ids()
    assert len(set(clips)) == len(clips)
    assert all(store.digest(clip) == clip[::-1] for clip in clips)
    found = store.lookup(clips).logits.numpy()
    assert all(
        np.array_equal(row, values_of(c)) for c, row in zip(clips, found, strict=True)
    )
    return len(clips)


@short_and_full(3, 100)
def test_processes_that_write_one_store(tries, seed, figures, tmp_path):
    draw, counts = random.Random(seed), collections.Counter()
    for number in range(tries):
        path, before = tmp_path / str(number), 0
        for _ in range(3):
            let_them_write(draw, counts, fill_store, path)
            if (path / "manifest.json").exists():
                found = check_store(path)
                assert found >= before  # nothing that was there is lost
                before = found
        last = start(fill_store, path, draw.random(), True)
        last.join()
        assert last.exitcode == 0
        assert check_store(path) == len(CLIPS)
    figures(
        f"{tries} stores, {9 * tries} processes",
        f"{counts[-signal.SIGKILL]} killed, {counts[REFUSED]} refused",
        "0 rows lost, doubled or mixed up",
    )


@short_and_full(3, 100)
def test_processes_that_embed_to_one_file(tries, seed, figures, tmp_path):
    draw, counts = random.Random(seed), collections.Counter()
    names = sorted(CLIPS)
    for number in range(tries):
        output = tmp_path / f"{number}.npz"
        for _ in range(2):
            let_them_write(draw, counts, embed, output, names)
        last = start(embed, output, names, 0)
        last.join()
        assert last.exitcode == 0
        with np.load(output) as content:
            assert content["names"].tolist() == names
            for name, values in zip(names, content["embeddings"], strict=True):
                assert np.array_equal(values, values_of(name))
        left = {path.suffix for path in tmp_path.glob(f"*{number}.npz*")}
        assert left <= {".npz", ".part"}  # the file, and what a kill left beside it
    figures(
        f"{tries} files, {6 * tries} processes",
        f"{counts[-signal.SIGKILL]} killed, {counts[REFUSED]} refused",
        "0 rows lost, doubled or mixed up",
    )


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "openvino"])
def taggers(request):
    """Of an MN and a DyMN, with the front end in the file and outside of it."""
    sources = [
        source_of(random_weights(kind(num_classes=20, width=0.1)))
        for kind in (MN, DyMN)
    ]
    if request.param != "torch":
        return [
            Tagger(content_of(source, front_end=front_end), request.param, threads=1)
            for source in sources
            for front_end in ("in", "out")
        ]
    return [
        AudioTagger(
            {"student": source.model.student, "log_mel": source.log_mel},
            {
                "labels": source.model.labels,
                "sample_rate": RATE,
                "clip_seconds": source.model.clip_seconds,
                "target": source.model.target,
                "short_clips": source.model.short_clips,
            },
            {"device": "cpu"},
        )
        for source in sources
    ]


@short_and_full(1, 20)
def test_threads_that_share_a_tagger(tries, seed, figures, taggers):
    """Eight of them, sounds of all lengths: the bits that one thread gets."""
    rng = np.random.default_rng(seed)
    torch.set_num_threads(1)
    num_scored = 0
    for _ in range(tries):
        sounds = [
            synthesised(int(length), RATE, int(length))
            for length in rng.integers(800, 40000, size=4)
        ]
        for tagger in taggers:
            expected = [_results(tagger, sound) for sound in sounds]

            def score(number, tagger=tagger, sounds=sounds):
                order = np.random.default_rng(number).permutation(len(sounds))
                found = {n: _results(tagger, sounds[n]) for n in order}
                return [found[n] for n in range(len(sounds))]

            for found in in_threads(score, 8):
                for one, other in zip(found, expected, strict=True):
                    assert all(map(np.array_equal, one, other))
                num_scored += len(found)
    figures(f"8 threads, {len(taggers)} taggers", f"{num_scored} sounds", "0 differ")


def _results(tagger, sound):
    windows = tagger.scan(sound, RATE, window_seconds=0.5, hop_seconds=0.2)
    return [
        tagger.probabilities([sound], RATE),
        tagger.embed(sound, RATE),
        np.stack([window.probabilities for window in windows]),
    ]
