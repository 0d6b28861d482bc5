"""Reads damaged sound in every way there is, in a process that it may take with it.

Each step is a line of the log before it begins, so that whoever started the process
knows what it died of; so is each thing that should not be, and the figures at the end.
"""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path

import datasets
import numpy as np
import torch
from damaged_sound import FORMS, DamagedFile, damaged_file, whole

from efficientat_plugin.cli import load_model as models_of_cli
from efficientat_plugin.cli import main
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader, UnreadableClip, decode
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.data.mixing import WaveformAugment, WaveformMix
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.prepare.preparation import prepare
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.runtime import Tagger

RATE = 32000
GOOD = {"good_a": "wav16", "good_b": "flac24", "good_c": "vorbis", "good_d": "mp3"}
SECONDS = 5.0  # of a processor, for one file in one way
MEGABYTES = 300  # above what the process needs for good files
BATCH = 20  # damaged files, and the good ones among them
LOUD = 10.0  # of samples; full scale is 1
PREPARED = 10  # every so many batches
LABELS = LabelTable(["/m/a", "/m/b", "/m/c"], ["A", "B", "C"])


class Trials:
    """What is done to one batch of files after the other."""

    def __init__(self, models: Path, work: Path, log: Path) -> None:
        self.model = models / "model"
        self.tagger = models_of_cli.load_tagger(str(self.model), None, "cpu")
        # Or most of the time is that of reading the model.
        models_of_cli.load_tagger = lambda *_: self.tagger
        self.graph = models / "model.onnx"
        self.runtime = Tagger(self.graph, "onnxruntime", threads=1)
        self.work = work
        self.log = open(log, "a", encoding="utf-8")
        self.baseline = 0.0
        self.forget()
        self.step = ""
        sys.unraisablehook = lambda hooked: self.fault(f"unraisable {hooked}")
        content = {name: whole(form) for name, form in GOOD.items()}
        self.good = {
            f"{name}{FORMS[form].suffix}": content[name] for name, form in GOOD.items()
        }
        self.expected = {
            name: self.tagger.probabilities([content])[0]
            for name, content in self.good.items()
        }

    def forget(self) -> None:
        """What was counted and measured until now."""
        self.counts = dict.fromkeys(["files", "read", "refused", "loud"], 0)
        self.slowest, self.largest, self.difference = 0.0, 0.0, 0.0

    def figures(self) -> dict:
        return {
            "counts": self.counts,
            "slowest": self.slowest,  # seconds
            "megabytes": self.largest,
            "baseline": self.baseline,
            "difference": self.difference,
        }

    def write(self, **line) -> None:
        print(json.dumps(line), file=self.log, flush=True)

    def fault(self, text: str) -> None:
        self.write(fault=text, step=self.step)

    @contextlib.contextmanager
    def watched(self, step: str, num_files: int = 1):
        """Whatever is not expected is written down, and all goes on."""
        self.step = step
        self.write(step=step)
        _forget_peak()
        begun = time.process_time()
        try:
            yield
        except Exception as error:
            self.fault(f"{type(error).__name__}: {error}")
        taken = (time.process_time() - begun) / num_files
        above = _peak_megabytes() - self.baseline
        self.slowest = max(self.slowest, taken)
        if taken > SECONDS:
            self.fault(f"{taken:.1f} s")
        if self.baseline:
            self.largest = max(self.largest, above)
            if above > MEGABYTES:
                self.fault(f"{above:.0f} MB above the baseline")

    def result(self, way: str, path: Path, call):
        """What comes of a file: a value, or why there is none."""
        outcome = None
        with self.watched(f"{way} {path.name}"):
            try:
                outcome = call(path)
            except UnreadableClip as reason:
                outcome = reason
                text = str(reason)
                if not 10 < len(text) < 400 or "\n" in text:
                    self.fault(f"no reason: {text!r}")
                if way not in ("decode", "bytes") and path.name not in text:
                    self.fault(f"no name: {text!r}")
        return outcome

    # --- One file ---------------------------------------------------------------

    def one(self, path: Path, must: str | None) -> bool:
        """Whether a file could be read to its end."""
        start = self.result("decode", path, lambda p: decode(p, RATE, RATE))
        same = self.result("bytes", path, lambda p: decode(p.read_bytes(), RATE, RATE))
        tagged = self.result("tag", path, lambda p: self.tagger.probabilities([p])[0])
        exported = self.result(
            "runtime", path, lambda p: self.runtime.probabilities([p])[0]
        )
        scanned = self.result("scan", path, self.scanned)
        is_read = isinstance(tagged, np.ndarray)
        if must is not None and is_read != (must == "read"):
            self.fault(f"{path.name} must be {must}: {tagged}")
        if isinstance(start, np.ndarray):
            if start.dtype != np.float32 or start.shape != (RATE,):
                self.fault(f"decoded to {start.dtype} {start.shape}")
            if not np.isfinite(start).all():
                self.fault("decoded to what is not finite")
            self.counts["loud"] += bool(np.abs(start).max() > LOUD)
            # libsndfile takes a file for MP3 by its name alone, which bytes have not.
            is_guess = path.suffix == ".mp3" and "not recognised" in str(same)
            if not is_guess and not np.array_equal(start, same):
                self.fault(f"its bytes give {same}")
        elif is_read or isinstance(same, np.ndarray):
            self.fault(f"decode refuses what others read: {start}")
        for other in (exported, scanned):
            if isinstance(other, np.ndarray) != is_read:
                self.fault(f"{path.name}: tag prints {tagged}, another {other}")
        if is_read:
            for rows in (tagged, exported, scanned):
                if not (np.isfinite(rows).all() and 0 <= rows.min() <= rows.max() <= 1):
                    self.fault(f"{path.name}: probabilities {rows}")
            # Quiet bands beside loud ones are rounded differently, and damaged sound
            # may be as loud as it likes.
            is_loud = isinstance(start, np.ndarray) and np.abs(start).max() > LOUD
            if np.abs(tagged - exported).max() > (0.05 if is_loud else 1e-3):
                self.fault(f"{path.name}: {tagged} in torch, {exported} without")
        return is_read

    def scanned(self, path: Path) -> np.ndarray:
        windows = self.tagger.scan(path, window_seconds=0.5)
        return np.stack([window.probabilities for window in windows])

    # --- Many files -------------------------------------------------------------

    def batch(self, files: list[DamagedFile], turn: int) -> None:
        """Of the commands beside tagging one takes its turn."""
        folder = self.work / "sounds"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        good_names = []
        for number, (name, content) in enumerate(self.good.items()):
            place = number * len(files) // len(self.good)
            good_names.append(files[place].name[:6] + name)
            (folder / good_names[-1]).write_bytes(content)
        for file in files:
            (folder / file.name).write_bytes(file.content)
        self.good_of = dict(zip(good_names, self.good, strict=True))
        refused = set()
        for file in files:
            if not self.one(folder / file.name, file.must):
                refused.add(file.name)
        self.counts["files"] += len(files)
        self.counts["refused"] += len(refused)
        self.counts["read"] += len(files) - len(refused)
        paths = sorted(folder.iterdir())
        named = f"{paths[0].name} to {paths[-1].name}"
        others = [self.scan_all, self.embed_all, self.run_all]
        for way in (self.tag_all, others[turn % len(others)]):
            with self.watched(f"{way.__name__} {named}", len(paths)):
                way(paths, refused)
        rows = datasets.Dataset.from_list(
            [
                {"video_id": p.name, "audio": {"bytes": None, "path": str(p)}}
                | {"labels": ["/m/a"]}
                for p in paths
            ]
        )
        for way in (self.load_all, self.train_all):
            with self.watched(f"{way.__name__} {named}", len(paths)):
                way(rows, paths)
        if turn % PREPARED == 0:
            with self.watched(f"prepare_all {named}", len(paths)):
                self.prepare_all(rows, paths, refused)

    def command(self, run, *arguments) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(argument) for argument in arguments])
        if "Traceback" in err.getvalue():
            self.fault(err.getvalue())
        return code, out.getvalue(), err.getvalue()

    def check_report(self, code: int, err: str, paths, refused: set[str]) -> None:
        """A command names each sound that it could not read, and no other."""
        names = {path.name for path in paths}
        found = {Path(p).name for p in re.findall(r"^(?:\w+: )?(/.+?): ", err, re.M)}
        if found & names != refused or code != bool(refused):
            self.fault(f"exit {code}; named {found ^ refused} wrongly: {err}")

    def compare(self, name: str, found) -> None:
        """The row of a good file is what it is without others."""
        difference = np.abs(found - self.expected[self.good_of[name]]).max()
        self.difference = max(self.difference, float(difference))

    def tag_all(self, paths, refused) -> None:
        options = ["--model", self.model, "--device", "cpu", "--format", "jsonl"]
        code, out, err = self.command(main, "tag", *paths, *options)
        self.check_report(code, err, paths, refused)
        found = [json.loads(line) for line in out.splitlines()]
        read = [path.name for path in paths if path.name not in refused]
        if [Path(each["sound"]).name for each in found] != read:
            self.fault(f"tagged were {found}")
        for each in found:
            name = Path(each["sound"]).name
            if name in self.good_of:
                by_name = {tag["name"]: tag["probability"] for tag in each["tags"]}
                self.compare(name, np.array([by_name[n] for n in LABELS.names]))

    def scan_all(self, paths, refused) -> None:
        options = ["--model", self.model, "--device", "cpu", "--format", "jsonl"]
        code, out, err = self.command(main, "scan", *paths, *options, "--window", "1")
        self.check_report(code, err, paths, refused)
        found = {Path(json.loads(line)["sound"]).name for line in out.splitlines()}
        if not found >= {path.name for path in paths} - refused:
            self.fault(f"scanned were {found}")

    def embed_all(self, paths, refused) -> None:
        output = self.work / "embeddings.npz"
        options = ["--model", self.model, "--device", "cpu", "--output", output]
        code, _, err = self.command(main, "embed", paths[0].parent, *options)
        self.check_report(code, err, paths, refused)
        with np.load(output) as content:
            if set(content["names"]) != {path.name for path in paths} - refused:
                self.fault(f"embedded were {content['names']}")
            if not np.isfinite(content["embeddings"]).all():
                self.fault("embeddings are not finite")

    def run_all(self, paths, refused) -> None:
        code, out, err = self.command(main, "tag", *paths, "--model", self.graph)
        self.check_report(code, err, paths, refused)
        found = {Path(line).name for line in out.splitlines() if line[0] != " "}
        if found != {path.name for path in paths} - refused:
            self.fault(f"the runtime tagged {found}")

    def load_all(self, rows, paths) -> None:
        """Each clip is read as alone, or skipped and named."""
        clips = Clips(rows, ClipReader(LABELS, 1.0, RATE))
        met = {}
        for batch in read_batches(clips, max_unreadable_share=1.0, batch_size=7):
            met |= zip(batch.clip_id, batch.waveform, strict=True)
            met |= dict(batch.skipped)
        # The last batch may hold nothing but what was skipped.
        for path in paths:
            try:
                expected = decode(path, RATE, RATE)
            except UnreadableClip as reason:
                if met.get(path.name, str(reason)) != str(reason):
                    self.fault(f"{path.name} was not skipped: {met[path.name]}")
            else:
                if not np.array_equal(met[path.name].numpy(), expected):
                    self.fault(f"{path.name} is another clip in the loader")

    def train_all(self, rows, paths) -> None:
        """Batches keep their size, and what is in them can be learnt from."""
        clips = Clips(
            rows,
            ClipReader(LABELS, 1.0, RATE),
            augment=WaveformAugment(gain_db=12, roll_samples=4000),
            waveform_mix=WaveformMix(),
            replace_unreadable=True,
        )
        for batch in read_batches(clips, max_unreadable_share=1.0, batch_size=7):
            if not torch.isfinite(batch.waveform).all():
                self.fault(f"{batch.clip_id} are not finite in training")

    def prepare_all(self, rows, paths, refused) -> None:
        folder = self.work / "prepared"
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):
            prepare({"eval": rows}, ClipEncoder("flac"), folder, 8, 1, 1.0)
            prepared = load_rows(str(folder), "eval")
        kept = {row["video_id"]: row["audio"] for row in prepared}
        if set(kept) != {path.name for path in paths} - refused:
            self.fault(f"prepared were {sorted(kept)}")
        for name, good in self.good_of.items():
            found = decode(kept[name], RATE, RATE)
            if np.abs(found - decode(self.good[good], RATE, RATE)).max() > 1e-4:
                self.fault(f"{name} was prepared as another clip")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _megabytes(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def _peak_megabytes() -> float:
    return _megabytes("VmHWM")


def run(models, folder, log, seed, first, stop, *skipped) -> None:
    """Files ``first`` to ``stop`` of a seed, without those that nothing survives."""
    torch.set_num_threads(1)
    trials = Trials(Path(models), Path(folder), Path(log))
    warnings.simplefilter("error")
    seed, first, stop = map(int, (seed, first, stop))
    good = whole("wav16")
    warm_up = [DamagedFile(f"{n:05d}-whole.wav", good, "read") for n in range(2)]
    for turn in range(3):
        trials.batch(warm_up, turn)
    trials.baseline = _peak_megabytes()
    # What asks for more than this is refused it, and that is a fault.
    limit = round((_megabytes("VmSize") + 4000) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for start in range(first, stop, BATCH):
        until = min(start + BATCH, stop)
        numbers = set(range(start, until)) - set(map(int, skipped))
        files = [damaged_file(seed, number) for number in sorted(numbers)]
        trials.forget()
        if files:
            trials.batch(files, start // BATCH)
        trials.write(until=until, **trials.figures())


if __name__ == "__main__":
    run(*sys.argv[1:])
    # Not by way of what others do at their end.
    sys.stdout.flush()
    os._exit(0)
