"""How well are real sounds detected, with and without a teacher, beside a tagger?

> python benchmarks/soundscapes_real.py --sounds ESC50 --folder results/real \\
    --facts hparams/data/esc50.yaml --audioset_labels benchmarks/esc50_in_audioset.csv

With your own clips, SOUNDS is what ``recipes/finetune.py`` takes, with one class per
recording; ``--facts`` may be left out. ``--audioset_labels`` is a CSV with columns
``class`` and ``audioset``, one row for each of AudioSet's labels that stands for a
class; without it there is no row of the published tagger. Rerun the same command to
resume; ``--systems`` leaves some of them out. All stays in FOLDER, about 0.7 MB a
soundscape. Everything runs on the CPU; ``OMP_NUM_THREADS=1`` keeps it to one core.

The soundscapes are split by source recording. These are compared:

- first: a FrameMN of width 0.4 and a small transformer, from ``mn04_as``, on the events
  of the training soundscapes. Its strides differ from the tagger's, so features have to
  be trained again;
- strong: the same with other seeds, in fewer epochs, with the first one's backbone;
- taught: the same, taught by the average of all ``strong`` detectors, too;
- teacher: that average;
- tagger: ``mn04_as`` on windows of 2 s every 0.25 s, as published. The score of a class
  is the highest of its AudioSet labels;
- probe: logistic regression on the embeddings of the same windows of the training
  soundscapes.

The sample rate, the epoch that is kept, the weight of the teacher, the probe's penalty,
median filters and thresholds are chosen on the validation soundscapes. The test
soundscapes are scored once these choices are written to ``choices.json``.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from efficientat_plugin import (
    Event,
    EventDetector,
    LogMel,
    event_scores,
    load_student,
    psds,
    read_events,
)
from efficientat_plugin.data.decoding import decode_blocks
from efficientat_plugin.data.events.frame_events import FRAME_SECONDS, median_filter
from efficientat_plugin.evaluation.events import PSDS1, PSDS2
from efficientat_plugin.support.files import atomic_file

REPOSITORY = Path(__file__).resolve().parents[1]
TAGGER = "mn04_as"
WINDOW_SECONDS, HOP_SECONDS = 2.0, 0.25
TRAINING_HOP_SECONDS = 0.5  # of the windows that the probe is fitted to
WINDOW_FRAME = HOP_SECONDS / 2  # s, of a grid that starts with the sound
SHARES = {"valid_share": 0.2, "test_share": 0.25}

FRONT_ENDS = {
    "16 kHz": {"n_mels": 64},  # otherwise as in fmn10_tf256.yaml
    "32 kHz": {  # otherwise that of mn04_as
        **{"n_mels": 64, "sample_rate": 32000, "win_length": 800, "hop_length": 320},
        **{"n_fft": 1024, "f_max": 15000, "log_floor": 1e-5, "log_floor_mode": "add"},
    },
}
STUDENT = {
    **{"width": 0.4, "sequence_model": "tf", "sequence_dim": 104},
    **{"prior": 0.01, "batch_norm_momentum": 0.1, "classes": "null"},
    **{"clips_per_epoch": "null", "waveform_mix": "null", "mixup": "null"},
    **{"batch_size": 8, "grad_accumulation_factor": 1, "eval_batch_size": 16},
    **{"lr": 0.005, "layer_decay": 1.0, "warmup_steps": 40},
}
SYSTEMS = ("first", "strong", "taught", "teacher", "probe", "tagger")
CHOICE_EPOCHS, BACKBONE_SEED = 2, 100
KD_WEIGHTS = (0.5, 0.9)  # tried with the first seed
PENALTIES = (1e-4, 1e-3, 1e-2)  # C of the probe
MEDIANS = (0.0, 0.36, 0.68, 1.0, 1.5, 2.0, 3.0)  # s
THRESHOLDS = np.round(np.geomspace(0.02, 0.9, 25), 4)

Frames = dict[str, NDArray[np.float32]]  # [T', K] by clip id


class Side(NamedTuple):
    """The soundscapes of one side, with their events."""

    files: dict[str, Path]  # by clip id
    events: dict[str, list[Event]]
    seconds: dict[str, float]


class Result(NamedTuple):
    """The scores of a system on the test soundscapes."""

    psds1: float  # mean of the classes, as published for AudioSet strong
    psds2: float
    psds1_of_all: float  # with the spread of the classes taken off, as in DCASE
    psds2_of_all: float
    event_f: float  # at 0.5
    event_f_best: float  # at the threshold of all classes that is best on validation
    per_class: dict[str, float]  # PSDS1


def main() -> None:
    """Makes the data, trains, chooses, tests, and prints the table."""
    arguments = parse()
    study = Study(arguments)
    study.make()
    choices: dict[str, Any] = {}
    everyone = study.systems(choices, arguments.systems)
    for name, systems in everyone.items():
        for place, system in enumerate(systems):
            key = f"{name} {place + 1}"
            choices[key] = study.choose_post_processing(key, system)
    with atomic_file(study.folder / "choices.json") as file:
        json.dump(choices, file, indent=1)
    results = {
        name: [
            study.test(f"{name} {place + 1}", system, choices[f"{name} {place + 1}"])
            for place, system in enumerate(systems)
        ]
        for name, systems in everyone.items()
    }
    report(results, study)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sounds", required=True)
    parser.add_argument("--facts", help="YAML of a known data set")
    parser.add_argument("--audioset_labels", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--number", type=int, default=1200, help="of soundscapes")
    parser.add_argument("--backbone_epochs", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    return parser.parse_args()


class Study:
    """Runs the recipes, and scores what they leave."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.folder
        self.scapes = self.folder / "scapes"
        self._sides: dict[str, Side] = {}

    # --- Data -------------------------------------------------------------------

    def make(self) -> None:
        """Makes the soundscapes, and finds the classes to test on."""
        options: dict[str, Any] = {"sounds": self.arguments.sounds, **SHARES}
        options |= {"number": self.arguments.number, "file_format": "wav"}
        if self.arguments.facts:
            options["facts"] = self.arguments.facts
        recipe("make_soundscapes.py", "soundscapes.yaml", folder=self.scapes, **options)
        counts: dict[str, Counter] = {}
        for side in ("train", "valid", "test"):
            events = self.side(side).events.values()
            counts[side] = Counter(each.label for some in events for each in some)
        self.classes = sorted(counts["train"])
        self.tested = sorted(set(counts["train"]) & set(counts["test"]))
        for side, count in counts.items():
            print(f"{side}: {sum(count.values())} events of {len(count)} classes")

    def side(self, name: str) -> Side:
        """Reads the events of a side."""
        if name not in self._sides:
            table = read_events(self.scapes / "events" / f"{name}.tsv")
            found = {path.stem: path for path in (self.scapes / name).glob("*.wav")}
            events = {Path(key).stem: value for key, value in table.events.items()}
            seconds = dict.fromkeys(events, 10.0)
            files = {clip_id: found[clip_id] for clip_id in sorted(events)}
            self._sides[name] = Side(files, events, seconds)
        return self._sides[name]

    # --- Training ---------------------------------------------------------------

    def train(self, folder: Path, front_end: str, **options: Any) -> float:
        """Trains a detector; returns the best PSDS1 on validation.

        The events of the test soundscapes are not given, so nothing is tested.
        """
        if not (folder / "done").exists():
            events = [self.scapes / "events" / f"{s}.tsv" for s in ("train", "valid")]
            begun = time.time()
            recipe(
                "audioset_strong.py",
                "fmn10_tf256.yaml",
                dataset=self.scapes,
                events=",".join(map(str, events)),
                num_workers=0,
                output_folder=folder,
                **STUDENT | FRONT_ENDS[front_end] | options,
            )
            (folder / "done").write_text(f"{time.time() - begun:.0f} s\n")
        value = best_epoch(folder)
        print(f"validation: {folder.name}: PSDS1 {value:.4f}", flush=True)
        return value

    def choose(self) -> dict[str, Any]:
        """Chooses the sample rate on validation."""
        tried = {}
        for name in FRONT_ENDS:
            folder = self.folder / "choose" / name.replace(" ", "_")
            options = {"backbone": TAGGER, "seed": BACKBONE_SEED, "teacher": "null"}
            options["number_of_epochs"] = CHOICE_EPOCHS
            tried[name] = self.train(folder, name, **options)
        return {"front_end": max(tried, key=tried.__getitem__), "tried": tried}

    def backbone(self, choices: Mapping[str, Any]) -> Path:
        """Trains the backbone that all detectors start from."""
        options = {"backbone": TAGGER, "seed": BACKBONE_SEED, "teacher": "null"}
        options["number_of_epochs"] = self.arguments.backbone_epochs
        self.train(self.folder / "backbone", choices["front_end"], **options)
        return self.folder / "backbone" / "model"

    def strong(self, choices: Mapping[str, Any], seed: int) -> Path:
        """Trains on strong labels alone."""
        return self._trained(choices, f"strong_{seed}", seed, teacher="null")

    def taught(
        self, choices: Mapping[str, Any], teachers: list[Path], seed: int, weight: float
    ) -> Path:
        """Trains with the average of all detectors of strong labels as teacher."""
        names = ",".join(str(folder / "model") for folder in teachers)
        options = {"teacher": names, "kd_weight": weight}
        name = f"taught_by_{len(teachers)}_{weight}_{seed}"
        return self._trained(choices, name, seed, **options)

    def choose_kd_weight(self, choices: dict[str, Any], teachers: list[Path]) -> None:
        """Chooses the weight of the teacher on validation, with the first seed."""
        found = {}
        for weight in KD_WEIGHTS:
            folder = self.taught(choices, teachers, self.arguments.seeds[0], weight)
            found[weight] = best_epoch(folder)
        choices["kd_weight"] = max(found, key=found.__getitem__)
        choices["tried_kd_weights"] = found

    def _trained(
        self, choices: Mapping[str, Any], name: str, seed: int, **options: Any
    ) -> Path:
        folder = self.folder / name
        options |= {"backbone": self.backbone(choices), "seed": seed}
        options |= {"number_of_epochs": self.arguments.epochs, "lr": 0.003}
        self.train(folder, choices["front_end"], **options)
        return folder

    # --- Systems: their scores over time, on each side ----------------------------

    def systems(
        self, choices: dict[str, Any], names: Sequence[str]
    ) -> dict[str, list["System"]]:
        """Trains what is to be compared; of detectors, one with each seed."""
        found: dict[str, list[System]] = {}
        seeds = self.arguments.seeds
        if {"first", "strong", "taught", "teacher"} & {*names}:
            choices |= self.choose()
        if "first" in names:
            found["first"] = [self.detector(self.backbone(choices).parent)]
        if {"strong", "taught", "teacher"} & {*names}:
            strong = [self.strong(choices, seed) for seed in seeds]
            found["strong"] = [self.detector(folder) for folder in strong]
            found["teacher"] = [self.detector(*strong)]
        if "taught" in names:
            self.choose_kd_weight(choices, strong)
            weight = choices["kd_weight"]
            taught = [self.taught(choices, strong, seed, weight) for seed in seeds]
            found["taught"] = [self.detector(folder) for folder in taught]
        if "probe" in names:
            found["probe"] = [self.probe(choices)]
        if "tagger" in names and self.arguments.audioset_labels:
            found["tagger"] = [self.tagger()]
        return {name: found[name] for name in names if name in found}

    def detector(self, *folders: Path) -> "System":
        """Scores frames by one detector, or by the average of several."""
        models = [folder / "model" for folder in folders]
        name = "+".join(folder.name for folder in folders)
        return System(self, name, lambda: frames_of_detector(models, self.tested))

    def tagger(self) -> "System":
        """Scores windows by the published tagger."""
        table: defaultdict[str, list[str]] = defaultdict(list)
        with self.arguments.audioset_labels.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                table[row["class"]].append(row["audioset"])
        if missing := [name for name in self.tested if name not in table]:
            sys.exit(f"{self.arguments.audioset_labels} has no row for {missing}")
        labels = [table[name] for name in self.tested]
        return System(self, "tagger", lambda: frames_of_tagger(labels), WINDOW_FRAME)

    def probe(self, choices: dict[str, Any]) -> "System":
        """Fits the logistic regression; its penalty is chosen on validation."""
        hops, cache = {"train": TRAINING_HOP_SECONDS, "valid": HOP_SECONDS}, {}
        for side, hop in hops.items():
            path = self.folder / "scores" / f"embeddings_{side}.npz"
            if not path.exists():
                embed = embedding_of_windows(hop)
                files = tqdm(self.side(side).files.items(), desc=side, disable=None)
                save(path, {clip_id: embed(file) for clip_id, file in files})
            cache[side] = load(path)
        features, targets = windows_and_labels(
            cache["train"], self.side("train").events, self.tested
        )
        scaler = StandardScaler().fit(features)
        found: dict[float, tuple[float, Callable]] = {}
        for penalty in PENALTIES:
            to_scores = logistic_regression(scaler, features, targets, penalty)
            frames = {k: on_grid(to_scores(v)) for k, v in cache["valid"].items()}
            value = self.psds1("valid", frames, WINDOW_FRAME)
            print(f"validation: probe, C {penalty}: PSDS1 {value:.4f}")
            found[penalty] = value, to_scores
        best = max(found, key=lambda penalty: found[penalty][0])
        choices["probe"] = {"C": best, "tried": {k: v[0] for k, v in found.items()}}

        def make() -> Callable[[Path], NDArray[np.float32]]:
            embed = embedding_of_windows(HOP_SECONDS)
            return lambda file: on_grid(found[best][1](embed(file)))

        return System(self, f"probe_{best}", make, WINDOW_FRAME)

    # --- Scores -----------------------------------------------------------------

    def psds1(self, side: str, frames: Frames, step: float) -> float:
        """Returns PSDS1, the mean of the classes."""
        truth = self._truth(side)
        found = psds(frames, *truth, self.tested, **PSDS1, frame_seconds=step)
        return found.macro

    def choose_post_processing(self, key: str, system: "System") -> dict[str, float]:
        """Chooses median filter and threshold of a system on validation."""
        raw, step = system.frames("valid"), system.frame_seconds
        by_median = {
            seconds: self.psds1("valid", filtered(raw, seconds, step), step)
            for seconds in MEDIANS
        }
        median = max(by_median, key=by_median.__getitem__)
        frames = filtered(raw, median, step)
        of_f = [self.event_f("valid", frames, step, float(t)) for t in THRESHOLDS]
        found = {"median_seconds": median, "PSDS1": by_median[median]}
        found["threshold"] = float(THRESHOLDS[int(np.argmax(of_f))])
        found["event_F"] = max(of_f)
        print(f"validation: {key}: {found}")
        return found

    def event_f(
        self, side: str, frames: Frames, step: float, threshold: float
    ) -> float:
        """Returns the mean F-score of events of all classes."""
        truth = self._truth(side)
        found = event_scores(frames, *truth, self.tested, threshold, frame_seconds=step)
        return found.macro

    def test(self, key: str, system: "System", choices: Mapping[str, float]) -> Result:
        """Scores a system on the test soundscapes."""
        step = system.frame_seconds
        frames = filtered(system.frames("test"), choices["median_seconds"], step)
        truth = self._truth("test")
        first = psds(frames, *truth, self.tested, **PSDS1, frame_seconds=step)
        second = psds(frames, *truth, self.tested, **PSDS2, frame_seconds=step)
        found = Result(
            psds1=first.macro,
            psds2=second.macro,
            psds1_of_all=first.value,
            psds2_of_all=second.value,
            event_f=self.event_f("test", frames, step, 0.5),
            event_f_best=self.event_f("test", frames, step, choices["threshold"]),
            per_class=first.per_class,
        )
        print(f"test: {key}: {found[:6]}", flush=True)
        return found

    def _truth(self, side: str) -> tuple[dict[str, list[Event]], dict[str, float]]:
        """Returns the events of the classes that are tested, and the durations."""
        found = self.side(side)
        events = {
            clip_id: [each for each in some if each.label in self.tested]
            for clip_id, some in found.events.items()
        }
        return events, found.seconds


class System:
    """What scores sound over time; its scores are kept in the study's folder."""

    def __init__(
        self,
        study: Study,
        name: str,
        make: Callable[[], Callable[[Path], NDArray[np.float32]]],
        frame_seconds: float = FRAME_SECONDS,
    ) -> None:
        self._study, self._name, self._make = study, name, make
        self.frame_seconds = frame_seconds

    def frames(self, side: str) -> Frames:
        """Scores all soundscapes of a side."""
        path = self._study.folder / "scores" / f"{self._name}_{side}.npz"
        if not path.exists():
            score = self._make()
            files = self._study.side(side).files.items()
            bar = tqdm(files, desc=f"{self._name}, {side}", disable=None)
            save(path, {clip_id: score(file) for clip_id, file in bar})
        return load(path)


# --- Steps --------------------------------------------------------------------------


def recipe(program: str, hparams: str, **options: Any) -> None:
    """Runs a recipe; ends with its words if it fails."""
    command = [sys.executable, str(REPOSITORY / "recipes" / program)]
    command += [str(REPOSITORY / "hparams" / hparams), "--noprogressbar"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    if program != "make_soundscapes.py":
        command += ["--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def best_epoch(folder: Path) -> float:
    """Returns the best PSDS1 on validation of all epochs of a run."""
    log = (folder / "train_log.txt").read_text()
    return max(map(float, re.findall(r"valid PSDS1: ([-+.e\d]+)", log)))


def save(path: Path, arrays: Frames) -> None:
    """Writes arrays by clip id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> Frames:
    """Reads what ``save`` wrote."""
    with np.load(path) as arrays:
        return dict(arrays)


def frames_of_detector(
    models: list[Path], classes: Sequence[str]
) -> Callable[[Path], NDArray[np.float32]]:
    """Returns what scores frames of a file, [T', K] of these classes."""
    detector = EventDetector.from_student(models)
    columns = [detector.labels.names.index(name) for name in classes]
    return lambda file: detector.frames(str(file)).scores[:, columns]


def frames_of_tagger(
    labels: Sequence[Sequence[str]],
) -> Callable[[Path], NDArray[np.float32]]:
    """Returns what scores the windows of a file; a class is its likeliest label."""
    detector = EventDetector.from_student(TAGGER)
    names = detector.labels.names
    columns = [[names.index(label) for label in some] for some in labels]

    def score(file: Path) -> NDArray[np.float32]:
        found = detector.frames(
            str(file), window_seconds=WINDOW_SECONDS, hop_seconds=HOP_SECONDS
        )
        assert found.frame_seconds == HOP_SECONDS and found.start_seconds == -0.125
        classes = [found.scores[:, places].max(axis=1) for places in columns]
        return np.repeat(np.stack(classes, axis=1), 2, axis=0)[1:]

    return score


def embedding_of_windows(hop_seconds: float) -> Callable[[Path], NDArray[np.float32]]:
    """Returns what computes the embeddings [windows, D] of the windows of a file."""
    student = load_student(TAGGER)
    log_mel = LogMel(**student.front_end).eval()
    rate = log_mel.sample_rate

    @torch.no_grad()
    def embed(file: Path) -> NDArray[np.float32]:
        blocks = list(decode_blocks(str(file), rate))
        waveform = torch.from_numpy(np.concatenate(blocks))
        size, hop = round(WINDOW_SECONDS * rate), round(hop_seconds * rate)
        windows = waveform.unfold(0, size, hop)
        return student(log_mel(windows)[:, None]).embedding.numpy()

    return embed


def windows_and_labels(
    embeddings: Frames, events: Mapping[str, list[Event]], classes: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Joins the windows of all clips with the classes that sound in their middle."""
    targets = []
    for clip_id, windows in embeddings.items():
        middle = WINDOW_SECONDS / 2 + TRAINING_HOP_SECONDS * np.arange(len(windows))
        found = np.zeros((len(windows), len(classes)), bool)
        for label, start, end, _ in events[clip_id]:
            if label in classes:
                found[(start <= middle) & (middle < end), classes.index(label)] = True
        targets.append(found)
    return np.concatenate([*embeddings.values()]), np.concatenate(targets)


def logistic_regression(
    scaler: StandardScaler, features: NDArray, targets: NDArray, penalty: float
) -> Callable[[NDArray], NDArray[np.float32]]:
    """Fits each class by itself; returns what scores windows, [windows, K]."""
    scaled = scaler.transform(features)
    fitted = [
        LogisticRegression(C=penalty, max_iter=300).fit(scaled, targets[:, k])
        for k in range(targets.shape[1])
    ]
    weights = np.concatenate([each.coef_ for each in fitted])
    bias = np.concatenate([each.intercept_ for each in fitted])

    def score(windows: NDArray) -> NDArray[np.float32]:
        logits = scaler.transform(windows) @ weights.T + bias
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    return score


def on_grid(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Puts scores of windows where ``frames`` puts those of a tagger's windows."""
    before = np.ceil((WINDOW_SECONDS - HOP_SECONDS) / 2 / HOP_SECONDS)
    padded = np.pad(windows, ((int(before),) * 2, (0, 0)), mode="edge")
    return np.repeat(padded, 2, axis=0)[1:]


def filtered(frames: Frames, seconds: float, step: float) -> Frames:
    """Filters scores by their median over an odd number of frames."""
    width = 2 * int(seconds / (2 * step) + 1e-6) + 1
    return {clip_id: median_filter(array, width) for clip_id, array in frames.items()}


def report(results: Mapping[str, Sequence[Result]], study: Study) -> None:
    """Prints the table, and what resampling the classes says of differences."""
    side = study.side("test")
    count = sum(e.label in study.tested for some in side.events.values() for e in some)
    print(f"{len(side.files)} soundscapes, {count} events, {len(study.tested)} classes")
    columns = ("PSDS1", "PSDS2", "DCASE's PSDS1", "PSDS2")
    columns += ("event F at 0.5", "at the threshold of validation")
    print(f"| system | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, some in results.items():
        cells = zip(*(each[: len(columns)] for each in some), strict=True)
        print(f"| {name} | {' | '.join(map(mean_and_range, cells))} |")
    by_class = {name: mean_of_classes(some) for name, some in results.items()}
    rng = np.random.default_rng(0)
    draws = rng.integers(len(study.tested), size=(10_000, len(study.tested)))
    for name, other in (
        ("taught", "strong"),
        ("strong", "probe"),
        ("strong", "tagger"),
    ):
        if name in by_class and other in by_class:
            gap = by_class[name] - by_class[other]
            low, high = np.quantile(gap[draws].mean(axis=1), (0.025, 0.975))
            print(
                f"PSDS1, {name} - {other}: {gap.mean():.3f}, 95 % of resampled classes "
                f"{low:.3f} to {high:.3f}; higher for {(gap > 0).sum()} classes, lower "
                f"for {(gap < 0).sum()}"
            )
    text = {name: [each._asdict() for each in some] for name, some in results.items()}
    with atomic_file(study.folder / "results.json") as file:
        json.dump(text, file, indent=1)


def mean_and_range(values: Sequence[float]) -> str:
    """Formats values as their mean, with the lowest and the highest of several."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def mean_of_classes(results: Sequence[Result]) -> NDArray[np.float64]:
    """Returns PSDS1 of each class, the mean of all seeds."""
    return np.mean([list(each.per_class.values()) for each in results], axis=0)


if __name__ == "__main__":
    main()
