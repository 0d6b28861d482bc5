"""Dumps: every clip once, the same logits whoever hears them and whatever interrupts,
and a sentence for what cannot be done."""

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import TORCHRUN, RecipeProcess, launch, run_to_end, start_both
from small_rows import LABELS, SAMPLE_RATE, TRAIN_IDS, damaged, noise, write_parquet
from torch import nn

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.skipped import TooManyUnreadable
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.ensemble import Ensemble, HeardStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.teachers.bring_your_own import OwnTeacher, Resampled, load_own
from efficientat_plugin.teachers.store.dump import Batches, store_logits
from efficientat_plugin.teachers.store.filling import fill_store
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.merge import merge_parts, part_path, parts_folder
from efficientat_plugin.teachers.store.writer import StoreWriter

REPOSITORY = Path(__file__).resolve().parents[1]
ABOUT = {
    "teacher": "ear",
    "labels_sha256": LABELS.sha256,
    "num_classes": 3,
    "sample_rate": SAMPLE_RATE,
    "clip_seconds": 0.5,
}


class Ear(nn.Module):
    """Says of a clip what its samples determine; remembers the batches it heard."""

    sample_rate, num_classes = SAMPLE_RATE, 3

    def __init__(self, stop_after=None):
        super().__init__()
        self.heard, self.stop_after = [], stop_after

    def forward(self, waveform):
        if len(self.heard) == self.stop_after:
            raise KeyboardInterrupt
        self.heard.append(len(waveform))
        logits = waveform[:, :48].unflatten(1, (3, 16)).sum(dim=2)
        return StudentOutput(logits, logits.new_zeros(len(logits), 0))


def linear_teacher():
    network = nn.Sequential(nn.AdaptiveMaxPool1d(64), nn.Linear(64, 3))
    return OwnTeacher(network, SAMPLE_RATE, LABELS)


def dump(path, rows, reader, teacher=None, rank=0, world_size=1, **options):
    """As the recipe does, one process after the other."""
    options = {"batch_size": 2, "rank": rank, "world_size": world_size, **options}
    with StoreWriter(path, **ABOUT) as writer:
        return store_logits(writer, teacher or Ear(), rows, reader, **options)


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def logits_of(path, clip_ids=tuple(TRAIN_IDS)):
    store = LogitsStore(path)
    target = store.lookup(list(clip_ids))
    assert target.known.all() and len(store) == len(clip_ids)
    return target.logits


@pytest.fixture(scope="module")
def expected(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    dump(path, rows, ClipReader(LABELS, 0.5, SAMPLE_RATE))
    return path


# Whoever hears them


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_write_what_one_writes(
    rows, reader, expected, tmp_path, capsys, world_size
):
    path = tmp_path / "s"
    merge_parts(path, **ABOUT)
    for rank in range(world_size):
        part = part_path(path, rank)
        dump(part, rows, reader, None, rank, world_size, stored=LogitsStore(path))
    assert merge_parts(path, **ABOUT) == 8
    assert contents(path) == contents(expected)
    assert not parts_folder(path).exists()
    assert capsys.readouterr().out.count("0 of 8 clips are stored already") == 1


@pytest.mark.parametrize("before, after", [(3, 2), (2, 1), (1, 3)])
def test_another_number_of_processes_goes_on(
    rows, reader, expected, tmp_path, before, after
):
    path = tmp_path / "s"
    for world_size, stop_after in [(before, 1), (after, None)]:
        merge_parts(path, **ABOUT)
        stored = LogitsStore(path)
        ears = [Ear(stop_after) for _ in range(world_size)]
        for rank, ear in enumerate(ears):
            part = part_path(path, rank)
            try:
                dump(part, rows, reader, ear, rank, world_size, stored=stored)
            except KeyboardInterrupt:
                pass
        if stop_after is None:  # nothing twice
            assert sum(sum(ear.heard) for ear in ears) == 8 - len(stored)
    merge_parts(path, **ABOUT)
    assert torch.equal(logits_of(path), logits_of(expected))


def test_an_interrupted_dump_ends_like_an_undisturbed_one(
    rows, reader, expected, tmp_path
):
    for stop_after in (1, 2, None):
        try:
            dump(tmp_path / "s", rows, reader, Ear(stop_after))
        except KeyboardInterrupt:
            assert stop_after is not None
    assert contents(tmp_path / "s") == contents(expected)
    ear = Ear()
    dump(tmp_path / "s", rows, reader, ear)
    assert not ear.heard


def test_batches_stay_what_they_are(rows, tmp_path):
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        whole = list(Batches(rows, LogitsStore(tmp_path / "s"), 3))
        writer.append([TRAIN_IDS[row] for row in whole[1]], np.zeros((3, 3)))
    stored = LogitsStore(tmp_path / "s")
    assert whole == [[0, 1, 2], [3, 4, 5], [6, 7]]
    rest = Batches(rows, stored, 3)
    assert list(rest) == [[0, 1, 2], [6, 7]] and rest.num_remaining == 5
    shares = [list(Batches(rows, stored, 3, rank, 4)) for rank in range(4)]
    assert sum(shares, []) == list(rest) and [] in shares


def test_batches_with_clips_that_cannot_be_read_stay_too(train_rows, reader, tmp_path):
    broken = [damaged(r) if n == 1 else r for n, r in enumerate(train_rows)]
    write_parquet(tmp_path / "train.parquet", broken)
    rows = load_rows(str(tmp_path), "train", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(TooManyUnreadable, match="1 of 8 clips"):
        dump(tmp_path / "whole", rows, reader)
    ear = Ear(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        dump(tmp_path / "s", rows, reader, ear)
    dump(tmp_path / "s", rows, reader, ear := Ear(), max_unreadable_share=1)
    assert ear.heard == [2, 2]
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


class Answers(Ear):
    """Its weights say nothing of what it answers."""

    def __init__(self, scale, clips_heard):
        super().__init__()
        self.scale, self.heard = scale, clips_heard

    def forward(self, waveform):
        output = super().forward(waveform)
        return output._replace(logits=self.scale * output.logits)


def test_a_teacher_that_says_something_else_does_not_go_on(rows, tmp_path, caplog):
    def fill(scale, some=rows):
        clips_heard = []
        teacher = Ensemble([Answers(scale, clips_heard)]).eval()
        about = {"clip_seconds": 0.5, "batch_size": 4}
        fill_store(tmp_path / "s", "ear", teacher, LABELS, some, **about)
        return sum(clips_heard)

    assert fill(1.0, rows.select([0, 1, 2])) == 3
    assert fill(1.01) == 5 + 2  # as another precision, or another device, would
    for scale in (50.0, np.nan):
        with pytest.raises(ValueError, match="differ from what the teacher computes"):
            fill(scale)
    others = [row | {"audio": rows[7]["audio"]} for row in rows]
    with pytest.raises(ValueError, match="7 of the 8 clips .*use another store"):
        fill(1.0, datasets.Dataset.from_list(others))
    one = datasets.Dataset.from_list([others[0], *list(rows)[1:]])
    caplog.clear()
    assert fill(1.0, one) == 2
    assert "1 of the 8 clips compared have changed" in caplog.text


# Streams


@pytest.fixture
def stream(train_rows, tmp_path):
    write_parquet(tmp_path / "data" / "train-0.parquet", train_rows[:5])
    write_parquet(tmp_path / "data" / "train-1.parquet", train_rows[5:])

    def load(split="train"):
        return load_rows(str(tmp_path / "data"), split, True)

    return load


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_stream_is_stored_like_a_map(stream, reader, expected, tmp_path, world_size):
    path = tmp_path / "s"
    merge_parts(path, **ABOUT)
    for rank in range(world_size):
        part = part_path(path, rank)
        heard = dump(part, stream(), reader, None, rank, world_size, num_clips=8)
        with StoreWriter(part, **ABOUT) as writer:
            assert all(clip in writer for clip, _ in heard)
    merge_parts(path, **ABOUT)
    assert torch.equal(logits_of(path), logits_of(expected))


def test_what_a_stream_brings_again_is_neither_decoded_nor_stored(
    stream, expected, tmp_path
):
    class Counting(ClipReader):
        read_ids: list[str] = []

        def read(self, row):
            self.read_ids.append(row["video_id"])
            return super().read(row)

    reader = Counting(LABELS, 0.5, SAMPLE_RATE)
    with pytest.raises(KeyboardInterrupt):
        dump(tmp_path / "s", stream(), reader, Ear(stop_after=1))
    stored, reader.read_ids = TRAIN_IDS[:2], []
    heard = dump(tmp_path / "s", stream("train+train"), reader, batch_size=4)
    assert not set(stored) & set(reader.read_ids)
    assert [clip for clip, _ in heard] == TRAIN_IDS[2:]
    assert dict(heard)[TRAIN_IDS[5]] == [0, 1]  # its classes, for verify
    assert torch.equal(logits_of(tmp_path / "s"), logits_of(expected))


def test_a_stream_names_what_it_cannot_read(train_rows, reader, tmp_path):
    broken = [damaged(r) if n == 6 else r for n, r in enumerate(train_rows)]
    write_parquet(tmp_path / "train.parquet", broken)
    rows = load_rows(str(tmp_path), "train", True)
    with pytest.raises(TooManyUnreadable, match="1 of 8 clips.*\n.*-_train-006"):
        dump(tmp_path / "s", rows, reader)
    assert len(LogitsStore(tmp_path / "s")) == 7


# Merging


def leave_parts(path, **about):
    for rank, clips in enumerate(["ab", "c"]):
        with StoreWriter(part_path(path, rank), **(ABOUT | about)) as writer:
            writer.append(list(clips), np.full((len(clips), 3), rank))


def test_a_merge_killed_anywhere_loses_and_doubles_nothing(tmp_path):
    path, aside = tmp_path / "s", tmp_path / "aside"
    leave_parts(path)
    shutil.copytree(parts_folder(path), aside)
    merge_parts(path, **ABOUT)
    whole = contents(path)
    # Killed before a part was gone: it is there again, whole or half removed.
    shutil.copytree(aside, parts_folder(path))
    part_path(path, 1).rename(parts_folder(path) / "1.merged")
    (parts_folder(path) / "1.merged" / "manifest.json").unlink()
    assert merge_parts(path, **ABOUT) == 0
    assert contents(path) == whole and not parts_folder(path).exists()


def test_a_process_killed_before_its_first_commit_left_nothing(tmp_path):
    leave_parts(tmp_path / "s")
    killed = part_path(tmp_path / "s", 2)
    killed.mkdir()
    (killed / "logits.f16").touch()
    assert merge_parts(tmp_path / "s", **ABOUT) == 3


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"teacher": "eye"}, "parts/0 holds other logits .teacher eye there, ear here"),
        (
            {"teacher_sha256": "1" * 64},
            "parts/0 holds other logits .weights of digest 1+ there",
        ),
    ],
)
def test_parts_of_another_teacher_are_refused_and_stay(tmp_path, other, text):
    leave_parts(tmp_path / "s", **other)
    with pytest.raises(ValueError, match=text):
        merge_parts(tmp_path / "s", **ABOUT)
    assert len(LogitsStore(part_path(tmp_path / "s", 0))) == 2


def test_parts_that_are_being_written_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    leave_parts(tmp_path / "s")
    with StoreWriter(part_path(tmp_path / "s", 1), **ABOUT):
        with pytest.raises(ValueError, match="parts/1 is being written"):
            merge_parts(tmp_path / "s", **ABOUT)
    assert merge_parts(tmp_path / "s", **ABOUT) == 1


# Refusals: what was heard before is kept


class Failing(Ear):
    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def forward(self, waveform):
        output = super().forward(waveform)
        return self.spoil(output) if len(self.heard) == 2 else output


def not_a_number(output):
    output.logits[1, 2] = torch.nan
    return output


def out_of_memory(_output):
    raise torch.OutOfMemoryError("CUDA out of memory")


def too_short(_output):
    raise ValueError("this teacher needs 10 s; set clip_seconds=10")


def one_class_more(output):
    return output._replace(logits=output.logits[:, [0, 1, 2, 2]])


@pytest.mark.parametrize(
    "spoil, text",
    [
        (not_a_number, "clip '-_train-003', is not finite"),
        (out_of_memory, "a batch of 2 clips does not fit .* pass --batch_size 1"),
        (too_short, "needs 10 s; set clip_seconds=10"),
        (one_class_more, r"shape \[2, 4\].* must be numbers of shape \[2, 3\]"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_lost(
    rows, reader, expected, tmp_path, spoil, text
):
    with pytest.raises(ValueError, match=text):
        dump(tmp_path / "s", rows, reader, Failing(spoil))
    assert len(LogitsStore(tmp_path / "s")) == 2
    dump(tmp_path / "s", rows, reader)
    assert contents(tmp_path / "s") == contents(expected)


def test_no_smaller_batch_than_one_is_advised(rows, reader, tmp_path):
    with pytest.raises(ValueError, match="a batch of 1 .* use a larger device"):
        dump(tmp_path / "s", rows, reader, Failing(out_of_memory), batch_size=1)


@pytest.mark.parametrize(
    "precision, text", [("fp16", "fp16 needs a GPU"), ("fp8", "must be one of fp32")]
)
def test_precisions_that_the_device_has_not_are_refused(
    rows, reader, tmp_path, precision, text
):
    with pytest.raises(ValueError, match=text):
        dump(tmp_path / "s", rows, reader, precision=precision)


def test_bfloat16_says_about_the_same(rows, reader, tmp_path):
    teacher = linear_teacher()
    for precision in ("fp32", "bf16"):
        dump(tmp_path / precision, rows, reader, teacher, precision=precision)
    one, other = (logits_of(tmp_path / name) for name in ("fp32", "bf16"))
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=0.05)


# Ensembles


def test_weighted_members_are_averaged_by_their_shares():
    members = [linear_teacher(), linear_teacher()]
    waveform = torch.randn(2, 16000)
    plain, alike = Ensemble(members).eval(), Ensemble(members, [5, 5]).eval()
    weighted = Ensemble(members, [2, 1]).eval()
    one, two = (member(waveform).logits for member in members)
    assert torch.allclose(weighted(waveform).logits, (2 * one + two) / 3)
    assert torch.allclose(plain(waveform).logits, alike(waveform).logits)
    digests = {plain.sha256(), alike.sha256(), weighted.sha256()}
    assert len(digests) == 3 and Ensemble(members, (4, 2)).sha256() in digests


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="must be 2 numbers, one for each member"):
        Ensemble([Ear(), Ear()], weights)


def test_any_module_is_a_member_and_its_weights_count():
    own = linear_teacher()
    ensemble = Ensemble([own, HeardStudent(LogMel(), MN(3, width=0.1))]).eval()
    output = ensemble(torch.zeros(2, 16000))
    assert output.logits.shape == (2, 3) and output.embedding.shape == (2, 96)
    before = ensemble.sha256()
    own.module[1].weight.data += 1
    assert ensemble.sha256() != before


def test_a_member_of_another_rate_hears_the_same_sound():
    class Peak(Ear):
        sample_rate = 16000

        def forward(self, waveform):
            spectrum = torch.fft.rfft(waveform).abs().argmax(dim=1)
            frequency = spectrum * self.sample_rate / waveform.shape[1]
            return StudentOutput(frequency[:, None].repeat(1, 3), waveform[:, :0])

    seconds = torch.arange(32000) / 32000
    tone = torch.sin(2 * torch.pi * 1000 * seconds)[None]
    with pytest.raises(ValueError, match=r"sample_rate \[32000, 16000\]; give m"):
        Ensemble([Ear(), Peak()])
    ensemble = Ensemble([Resampled(Peak(), 32000), Resampled(Peak(), 32000)])
    assert ensemble.sample_rate == 32000
    assert ensemble(tone).logits.tolist() == [[1000.0] * 3]


# One's own

OWN = """
import os, time, torch

class Net(torch.nn.Module):
    sample_rate = 16000
    labels = ["dog", "cat"]

    def forward(self, waveform):
        time.sleep(float(os.environ.get("SLOW_TEACHER", 0)))
        return waveform[:, :32].unflatten(1, (2, 16)).sum(dim=2)

def make():
    return Net()

def make_short():
    net = Net()
    net.forward = lambda waveform: waveform[:, :3]
    return net

def make_three():
    net = Net()
    net.labels = ["/m/a", "/m/b", "/m/c"]
    net.forward = lambda waveform: waveform[:, :3]
    return net

def make_silent():
    return torch.nn.Identity()

def make_mute():
    return 7

def make_unnamed():
    net = torch.nn.Identity()
    net.sample_rate, net.labels = 16000, "dog"
    return net

made = Net()
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_teachers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    return "my_teachers"


def test_a_function_makes_a_teacher(own_module):
    teacher = load_own("my_teachers:make")
    assert teacher.sample_rate == 16000 and teacher.labels.names == ("dog", "cat")
    assert teacher(torch.ones(3, 32)).logits.tolist() == [[16.0, 16.0]] * 3
    given = load_own("my_teachers:make_silent", 8000, LabelTable("ab", "ab"))
    assert given.sample_rate == 8000 and given.num_classes == 2


@pytest.mark.parametrize(
    "source, text",
    [
        ("no_such_module:make", "cannot be imported .*No module named"),
        ("my_teachers:nothing", "cannot be imported .*no attribute 'nothing'"),
        ("my_teachers:make_mute", "returned int; it must return an nn.Module"),
        ("my_teachers:made", "made is of type Net; it must be a function that"),
        (
            "my_teachers:make_silent",
            "no attribute sample_rate; .*'{sample_rate: HZ}'",
        ),
        ("my_teachers:make_unnamed", "must be a LabelTable or a list of names"),
    ],
)
def test_what_is_no_teacher_is_refused(own_module, source, text):
    with pytest.raises(ValueError, match=text):
        load_own(source)


def test_a_teacher_without_class_names_is_refused(own_module):
    with pytest.raises(ValueError, match="no attribute labels; .* '{labels: CSV}'"):
        load_own("my_teachers:make_silent", 8000)


def test_logits_of_another_shape_are_refused(own_module):
    with pytest.raises(ValueError, match=r"returned .*\[2, 3\].* of shape \(2, 2\)"):
        load_own("my_teachers:make_short")(torch.zeros(2, 32))


# Folders of audio


def write_audio(folder, count):
    for number in range(count):
        path = folder / f"{'ab'[number % 2]}" / f"clip{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(number, 4000), 16000)
    (folder / "notes.txt").write_text("no sound")
    return folder


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_folder_of_audio_needs_neither_labels_nor_split(tmp_path, reader, streaming):
    folder = write_audio(tmp_path / "audio", 3)
    rows = list(load_rows(str(folder), None, streaming))
    assert [row["video_id"] for row in rows] == ["a/clip00", "a/clip02", "b/clip01"]
    assert [row["labels"] for row in rows] == [[], [], []]
    assert reader.read(rows[0]).waveform.abs().max() > 0


def test_a_folder_without_audio_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder with audio files"):
        load_rows(str(tmp_path), None)


# The recipe


def command(store, **more):
    options = {
        "dataset": "audio",
        "teachers": "my_teachers:make",
        "clip_seconds": 0.25,
        "num_workers": 0,
        "batch_size": 2,
        "device": "cpu",
        "store": store,
    }
    words = [str(REPOSITORY / "recipes" / "dump_teacher_logits.py")]
    words += [str(REPOSITORY / "hparams" / "dump_teacher_logits.yaml")]
    for name, value in (options | more).items():
        words += [f"--{name}", str(value)]
    return words


def clips_written(store):
    manifests = [store / "manifest.json", *parts_folder(store).glob("*/manifest.json")]
    return sum(json.loads(m.read_text())["count"] for m in manifests if m.exists())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_dump_ends_like_an_undisturbed_one(own_module, tmp_path, processes):
    write_audio(tmp_path / "audio", 16)
    text = launch(*command("whole"))
    assert "whole: 16 clips" in text and "\nunjudged: 100.0% of 16 clips" in text
    killed, slow = tmp_path / "killed", {"SLOW_TEACHER": "0.5"}
    if processes == 1:
        children = [RecipeProcess(command(killed), **slow)]
    else:
        children = start_both(command(killed), **slow)
    patience = time.monotonic() + 120
    while clips_written(killed) < 4 and time.monotonic() < patience:
        time.sleep(0.01)
    for child in children:
        child.kill()
    done = clips_written(killed)
    assert 4 <= done < 16
    again = command(killed)
    text = run_to_end(again) if processes == 1 else launch(*TORCHRUN, *again)
    assert f"{done} of 16 clips are stored already" in text
    one, other = LogitsStore("whole"), LogitsStore("killed")
    clips = [one.clip(row)[0] for row in range(16)]
    assert torch.equal(one.lookup(clips).logits, other.lookup(clips).logits)
    assert all(one.digest(clip) == other.digest(clip) for clip in clips)
    if processes == 1:
        assert contents(Path("whole")) == contents(Path("killed"))


@pytest.mark.slow
def test_the_recipe_streams_and_weighs(own_module, tmp_path):
    write_audio(tmp_path / "audio", 4)
    options = {
        "teachers": "my_teachers:make,my_teachers:make",
        "teacher_weights": "2,1",
        "sample_rate": 32000,
        "streaming": True,
        "precision": "bf16",
    }
    text = run_to_end(command("s", **options))
    store = LogitsStore("s")
    assert len(store) == 4 and "s: 4 clips\nunjudged" in text
    assert store.manifest.sample_rate == 32000
    assert "Not verified: no clip of the stream" in run_to_end(command("s", **options))
    refused = run_to_end(command("s"), expect=1)
    assert "holds other logits (teacher my_teachers:make," in refused.splitlines()[-1]
    assert "precision bf16 there, fp32 here" in refused.splitlines()[-1]


@pytest.mark.slow
def test_the_recipe_says_in_a_sentence_what_is_wrong(own_module, tmp_path):
    write_audio(tmp_path / "audio", 2)
    for options, text in [
        ({"dataset": "nowhere"}, "--dataset PATH and --split NAME are needed"),
        ({"precision": "fp16"}, "precision=fp16 needs a GPU"),
        ({"labels": "three.csv"}, "No such file"),
        ({"teachers": "my_teachers:none"}, "cannot be imported"),
    ]:
        found = run_to_end(command("s", **options), expect=1)
        assert text in found.splitlines()[-1]


@pytest.fixture(scope="module")
def recipe():
    """The recipe's functions, without a process."""
    path = REPOSITORY / "recipes" / "dump_teacher_logits.py"
    spec = importlib.util.spec_from_file_location("dump_teacher_logits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def teacher_options(**more):
    names = ("teacher_weights", "teacher_sample_rate", "labels", "sample_rate")
    options = dict.fromkeys((*names, "pretrained_folder")) | {"teacher_options": {}}
    return options | more


@pytest.fixture
def three_classes(tmp_path):
    """A model folder, a file of its weights, and a table of its classes."""
    options = {"num_classes": 3, "width": 0.1}
    student = MN(**options)
    student.options, student.front_end = options, {"sample_rate": 32000}
    model = TrainedModel(student, LABELS, "multilabel", 0.5)
    scores = {"test": tagging_scores(np.eye(3), np.eye(3))}
    write_model_folder(tmp_path / "model", model, Provenance("m", None, "", "", scores))
    torch.save(student.state_dict(), tmp_path / "weights.pt")
    lines = [f"{n},{mid},{mid}" for n, mid in enumerate(LABELS.mids)]
    text = "\n".join(["index,mid,display_name", *lines])
    (tmp_path / "classes.csv").write_text(text)
    return tmp_path


def test_folders_files_and_functions_teach_together(recipe, own_module, three_classes):
    weights = three_classes / "model" / "student.ckpt"
    sources = f"{three_classes / 'model'},{weights}"
    options = teacher_options(teachers=sources, labels="classes.csv")
    teacher, labels = recipe.open_teacher(options | {"teacher_weights": "3,1"})
    assert labels.mids == LABELS.mids and teacher.weights == (0.75, 0.25)
    one, two = (member.state_dict() for member in teacher.members)
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert not teacher.training


@pytest.mark.parametrize(
    "teachers, options, text",
    [
        ("weights.pt", {}, "weights.pt does not state its front end; pass --teacher_"),
        ("my_teachers:make,model", {}, "different classes .2 and 3."),
        ("my_teachers:make", {"teacher_weights": "1,2"}, "must be 1 numbers"),
        (
            "model,my_teachers:make_three",
            {},
            r"\[32000, 16000\] Hz; pass --sample_rate",
        ),
    ],
)
def test_teachers_that_do_not_go_together_are_refused(
    recipe, own_module, three_classes, teachers, options, text
):
    with pytest.raises(ValueError, match=text):
        recipe.open_teacher(teacher_options(teachers=teachers, **options))


def test_another_sample_rate_is_resampled_where_it_is_asked_for(
    recipe, own_module, three_classes
):
    options = teacher_options(teachers="model,my_teachers:make_three")
    teacher, _ = recipe.open_teacher(options | {"sample_rate": 32000})
    assert teacher.sample_rate == 32000
    assert teacher(torch.zeros(2, 16000)).logits.shape == (2, 3)


def test_a_bad_clip_is_no_larger_share_of_what_a_resume_hears(
    train_rows, tmp_path, reader
):
    """Of 8 clips one is bad; a second run has nothing else to hear."""
    write_parquet(tmp_path / "t.parquet", [damaged(train_rows[0]), *train_rows[1:]])
    rows = load_rows(str(tmp_path / "t.parquet"), "t")
    options = {"max_unreadable_share": 0.2}
    dump(tmp_path / "store", rows, reader, **options)
    before = contents(tmp_path / "store")
    ear = Ear()
    dump(tmp_path / "store", rows, reader, ear, **options)
    assert not ear.heard and contents(tmp_path / "store") == before
    with pytest.raises(TooManyUnreadable, match="1 of 8 clips"):
        dump(tmp_path / "store", rows, reader, max_unreadable_share=0.1)
