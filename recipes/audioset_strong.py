"""Trains a sound event detector on clips with events: AudioSet strong, or your own.

> python recipes/audioset_strong.py hparams/events_quickstart.yaml    (needs no data)
> python recipes/audioset_strong.py hparams/fmn10_tf256.yaml --dataset PATH --events TSV

Rerun the same command to resume an interrupted run; `torchrun` runs it on several
processes. The model folder is OUTPUT_FOLDER/model; ``EventDetector.from_hparams``
loads it.
"""

import copy
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import speechbrain as sb
import torch
from numpy.typing import NDArray
from speechbrain.utils.distributed import if_main_process, run_on_main

from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.events.event_reader import (
    EventClipReader,
    EventClips,
    open_event_clips,
)
from efficientat_plugin.data.halves import HalvedDraws, Halves
from efficientat_plugin.data.labelled import runs_of, split_in_words
from efficientat_plugin.data.labels import LabelTable, audioset_strong_labels
from efficientat_plugin.data.mixing import Mixup
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.sampling import Draws, class_balanced_weights
from efficientat_plugin.data.skipped import SkippedClips, TooManyUnreadable
from efficientat_plugin.data.splits import Split, split_digest, write_split
from efficientat_plugin.evaluation.detection_scores import DetectionScores
from efficientat_plugin.evaluation.detection_stats import DetectionStats
from efficientat_plugin.evaluation.report import RunResult, plot_curves, write_scores
from efficientat_plugin.evaluation.threshold_choice import ChosenThresholds
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.backbone import (
    detects,
    load_backbone,
    start_detector,
)
from efficientat_plugin.pretrained.card import name_of
from efficientat_plugin.pretrained.description import Unstated, identity_of_weights
from efficientat_plugin.pretrained.folder import Provenance, write_model_folder
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.support.console import keep_log
from efficientat_plugin.support.files import explain_write_errors
from efficientat_plugin.support.launch import (
    claim_folder,
    load_hparams,
    parse_and_join,
    settings_of,
    start,
    world_size,
    yaml_to_save,
)
from efficientat_plugin.tagging.event_detector import EventDetector
from efficientat_plugin.tagging.whole_clips import whole_clip_frames
from efficientat_plugin.teachers.online_frames import FrameTeacher
from efficientat_plugin.teachers.stored import is_store
from efficientat_plugin.teachers.stored_frames import StoredFrameTeacher
from efficientat_plugin.training.event_brain import EventBrain
from efficientat_plugin.training.event_settings import decide_settings
from efficientat_plugin.training.recipe_parts import (
    checkpointer_of,
    modules_of,
    store_logits,
    trained_model,
)
from efficientat_plugin.training.short_runs import prepare_for_short_run


class Run(NamedTuple):
    """The data and the parts of a run, all checked."""

    clips: EventClips
    split: Split
    hparams: dict[str, Any]
    reader: EventClipReader
    parts: "Parts"

    @property
    def folder(self) -> Path:
        return Path(self.hparams["output_folder"])

    def on(self, places: list[int]) -> Clips:
        """Returns clips to score, without augmentation."""
        reader = copy.copy(self.reader)
        reader.random_crop = False
        return Clips(self.clips.rows.select(places), reader)


class Parts(NamedTuple):
    """The objects that depend on the data; the YAML builds the others."""

    student: FrameStudent
    modules: dict[str, torch.nn.Module]
    teacher: FrameTeacher | StoredFrameTeacher | None
    make_stats: partial[DetectionStats]
    lr_schedule: Any
    layer_decay: float
    head_scale: float
    epoch_counter: Any
    checkpointer: AtomicCheckpointer
    temperature_schedule: None = None  # no detector has dynamic convolutions


def main(argv: list[str]) -> None:
    """Reads, splits, trains, tests and writes as the YAML and the overrides say."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    if run_opts.test_only:
        sys.exit("--test_only works in audioset_kd.py only; runs here end with a test")
    train_detector(hparams_file, run_opts, overrides)


def train_detector(hparams_file: str, run_opts: Any, overrides: dict[str, Any]) -> None:
    """Does all that ``main`` does with a command line that is read."""
    hparams = load_hparams(hparams_file, overrides)
    clips = open_clips(hparams)
    if decided := decide_settings(hparams, clips):
        if if_main_process():
            print(", ".join(f"{name}: {value}" for name, value in decided.items()))
        overrides |= decided
        hparams = load_hparams(hparams_file, overrides)
    run = prepare(hparams, clips)
    settings = settings_of(hparams_file, overrides, run_opts)
    with explain_write_errors(run.folder):
        claim(run, settings)
        sb.create_experiment_directory(
            str(run.folder), **yaml_to_save(hparams_file, overrides)
        )
        keep_log()
        device = run_opts.device or sb.utils.distributed.infer_device()
        train_and_test(with_stored_logits(run, device), run_opts)


def prepare(hparams: dict[str, Any], clips: EventClips) -> Run:
    """Splits the clips, and builds the student and its teacher."""
    split = split_clips(clips, hparams)
    student = make_student(hparams, clips.labels)
    if not isinstance(student, FrameStudent):
        raise ValueError(
            f"a {type(student).__name__} does not score frames; use a FrameMN or a "
            "FramePaSST"
        )
    begin, log_mel, clip = (hparams[name] for name in ("start_from", "log_mel", "clip"))
    prior, momentum = begin["prior"], begin["batch_norm_momentum"]
    if prior is not None and not continues(hparams, clips.labels):
        prepare_for_short_run(student, prior, momentum)
    if isinstance(log_mel, partial):  # the rest comes with the weights
        log_mel = log_mel(**student.front_end)
    if clip["sample_rate"] is None:
        clip = clip | {"sample_rate": log_mel.sample_rate}
    hparams = hparams | {"log_mel": log_mel, "clip": clip}
    frame_seconds = student.frame_stride * log_mel.hop_length / log_mel.sample_rate
    num_samples = round(hparams["clip"]["clip_seconds"] * log_mel.sample_rate)
    num_frames = math.ceil(log_mel.num_frames(num_samples) / student.frame_stride)
    reader = EventClipReader(clips, num_frames, frame_seconds, **hparams["clip"])
    if reader.sample_rate != log_mel.sample_rate:
        raise ValueError(
            f"sample_rate={reader.sample_rate} Hz of the clips differs from "
            f"{log_mel.sample_rate} Hz of log_mel; set both to one rate"
        )
    teacher = open_teacher(hparams, clips, split, log_mel)
    if isinstance(teacher, StoredFrameTeacher):
        teacher.check_frames(
            num_frames,
            frame_seconds,
            hparams["clip"]["clip_seconds"],
            reader.short_clips,
        )
    stores = hparams["teaching"]["teacher_logits"] is not None
    if reader.random_crop and (stores or isinstance(teacher, StoredFrameTeacher)):
        raise ValueError(
            "stored logits are of the beginning of each clip, and random_crop trains on"
            " other parts, too; pass --random_crop False, or a teacher by its name "
            "without --teacher_logits"
        )
    drawn = draws(clips, split, hparams)  # refuses before anything is written
    number = drawn.clips_per_epoch
    parts = build_parts(hparams, clips, number, student, teacher, frame_seconds)
    return Run(clips, split, hparams, reader, parts)


def make_student(hparams: dict[str, Any], labels: LabelTable) -> Any:
    """Builds the student, from scratch or from the weights that the YAML names."""
    begin, log_mel = hparams["start_from"], hparams["log_mel"]
    folder = begin["pretrained_folder"]
    if begin.get("pretrained") is None:
        student = hparams["student"](num_classes=len(labels))
        if begin["backbone"] is not None:
            load_backbone(student, begin["backbone"], folder)
        return student
    stated = {k: v for k, v in log_mel.keywords.items() if "jitter" not in k}
    options = hparams["student"].keywords
    try:
        return start_detector(begin["pretrained"], labels, folder, stated, **options)
    except Unstated as error:
        how = '--log_mel "{n_mels: ..., hop_length: ...}"'
        raise ValueError(error.sentence({"front end": how})) from error


def continues(hparams: dict[str, Any], labels: LabelTable) -> bool:
    """Whether training starts from a detector of the same classes."""
    begin = hparams["start_from"]
    source = begin.get("pretrained")
    return source is not None and detects(source, labels, begin["pretrained_folder"])


def source_of(hparams: dict[str, Any]) -> str | None:
    """Returns what the student starts from: all of it, or its backbone."""
    begin = hparams["start_from"]
    return begin.get("pretrained") or begin.get("backbone")


def open_clips(hparams: dict[str, Any]) -> EventClips:
    """Opens the sounds and events that the YAML names, and prints a summary."""
    events = hparams["events"]
    if isinstance(events, str) and not Path(events).exists():
        events = [each.strip() for each in events.split(",")]
    elif events is not None and (tables := sorted(Path(events).glob("*.tsv"))):
        events = tables  # not a folder of label tracks
    names = {"dataset_config": "config", "dataset_cache": "cache_dir"}
    table = {names.get(name, name): v for name, v in hparams["table"].items()}
    clips = open_event_clips(
        hparams["dataset"],
        events,
        table_of_classes(hparams["classes"]),
        hparams["event_table"],
        **{name: value for name, value in table.items() if value is not None},
    )
    if if_main_process():
        print(f"{hparams['dataset']}: {clips}")
    if not clips.judged and hparams["teacher"] is None:
        raise ValueError(
            "the clips have neither events nor weak labels, and there is no teacher, so"
            " there is nothing to learn from; pass --events TABLE or --teacher NAME"
        )
    return clips


def table_of_classes(classes: str | None) -> LabelTable | None:
    """Reads the classes that the YAML names; None: those of the events."""
    if classes in (None, "audioset"):
        return None if classes is None else audioset_strong_labels()
    if Path(classes).is_file():
        return LabelTable.from_csv(classes)
    names = [name.strip() for name in classes.split(",")]
    return LabelTable(names, names)


def split_clips(clips: EventClips, hparams: dict[str, Any]) -> Split:
    """Splits the clips; those to validate and test on have known events."""
    splitting, rows = hparams["splitting"], clips.rows_to_split()
    runs = runs_of(
        rows,
        splitting["split"],
        splitting["fold"],
        splitting["valid_share"],
        splitting["test_share"],
        hparams["seed"],
    )
    if len(runs) > 1:
        raise ValueError(
            f"the data has {len(runs)} folds; pass --fold with the one to test on, and "
            "one --output_folder for each"
        )
    if if_main_process():
        print(f"split: {split_in_words(rows, runs, hparams['seed'])}")
    (split,) = runs.values()
    names = rows["video_id"][:]
    sides = {}
    for side in ("valid", "test"):
        places = getattr(split, side)
        sides[side] = [place for place in places if names[place] in clips.events]
        if (left := len(places) - len(sides[side])) and if_main_process():
            print(f"{left} of {len(places)} clips to {side} on have no known events")
    split = split._replace(**sides)
    if not split.train:
        raise ValueError("there is no clip to train on; pass other shares or splits")
    return split


def open_teacher(
    hparams: dict[str, Any], clips: EventClips, split: Split, log_mel: LogMel
) -> FrameTeacher | StoredFrameTeacher | None:
    """Opens and checks the teacher, if there is one."""
    source, teaching = hparams["teacher"], hparams["teaching"]
    options, folder = teaching["teacher_options"], teaching["teacher_logits"]
    coverage = teaching["min_teacher_coverage"]
    if source is None:
        if folder is not None:
            raise ValueError(
                "--teacher_logits keeps the logits of a teacher, and there is none; "
                "pass --teacher NAME, or the folder itself as --teacher"
            )
        return None
    summary = summarize_rows(clips.rows.select(split.train), clips.labels)
    teacher: FrameTeacher | StoredFrameTeacher
    if is_store(source):
        teacher = StoredFrameTeacher(source)
        lines = [
            teacher.check(summary, clips.labels, coverage),
            teacher.describe(summary.clip_ids),
        ]
    else:
        teacher = FrameTeacher(
            source,
            log_mel,
            savedir=hparams["start_from"]["pretrained_folder"],
            options=options,
        )
        lines = [teacher.check(summary, clips.labels)]
    if if_main_process():
        for line in lines:
            print(f"Teacher: {line}")
    return teacher


def with_stored_logits(run: Run, device: str) -> Run:
    """Lets stored logits teach, if the YAML says so; computes those not yet stored."""
    teacher, path = run.parts.teacher, run.hparams["teaching"]["teacher_logits"]
    if path is None or not isinstance(teacher, FrameTeacher):
        return run
    rows = run.clips.rows.select(run.split.train)
    network: Any = teacher.model
    stored = store_logits(
        run.hparams,
        path,
        run.hparams["teacher"],
        network.to(device),
        run.clips.labels,
        rows,
        device,
        of_frames=True,
    )
    assert isinstance(stored, StoredFrameTeacher)
    if if_main_process():
        print(f"Teacher: {stored.describe(train_ids(run))}")
    return run._replace(parts=run.parts._replace(teacher=stored))


def build_parts(
    hparams: dict[str, Any],
    clips: EventClips,
    clips_per_epoch: int,
    student: FrameStudent,
    teacher: FrameTeacher | StoredFrameTeacher | None,
    frame_seconds: float,
) -> Parts:
    """Builds the objects that depend on the data."""
    counter = hparams["epoch_counter"]
    if callable(counter):  # the data decides the number of epochs
        counter = counter(limit=hparams["number_of_epochs"])
    model = trained_model(hparams, student, clips.labels, "multilabel")
    modules = modules_of(hparams, student, hparams["log_mel"])
    if hparams["frame_shift"] is not None:
        modules["frame_shift"] = hparams["frame_shift"]
    scoring = dict(hparams["scoring"])
    cut = hparams["clip"]["clip_seconds"]
    make_stats = partial(
        DetectionStats,
        clips.events,
        {name: min(seconds, cut) for name, seconds in clips.seconds.items()},
        clips.labels.names,
        frame_seconds,
        **scoring,
    )
    lr, rates = hparams["opt_class"].keywords["lr"], hparams["rates"]
    head_lr = rates["head_lr"]
    return Parts(
        student=student,
        modules=modules,
        teacher=teacher,
        make_stats=make_stats,
        lr_schedule=schedule_of(hparams, clips_per_epoch),
        layer_decay=rates["layer_decay"],
        head_scale=1.0 if head_lr is None else head_lr / lr,
        epoch_counter=counter,
        checkpointer=checkpointer_of(hparams, model, counter),
    )


def schedule_of(hparams: dict[str, Any], clips_per_epoch: int) -> Any:
    """Builds the schedule of the learning rate, whose warm-up counts steps."""
    epochs = hparams["number_of_epochs"]
    per_step = hparams["train_loader"]["batch_size"] * world_size()
    steps = epochs * clips_per_epoch / (per_step * hparams["grad_accumulation_factor"])
    warmup_steps = hparams["rates"]["warmup_steps"]
    if warmup_steps is None:
        warmup_steps = steps / 10
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be 0 or more, and fewer than the "
            f"{steps:.0f} steps of {epochs} epochs"
        )
    share = warmup_steps / steps
    return hparams["lr_schedule"](number_of_epochs=epochs, warmup_share=share)


def claim(run: Run, settings: dict[str, Any]) -> None:
    """Claims the output folder; refuses one that holds another run."""
    hparams, this = run.hparams, dict(settings)
    this |= split_digest(run.clips.rows, run.split)
    this["events"] = run.clips.digest()  # wherever they are written
    this["backbone"] = identity_of_weights(source_of(hparams))
    if run.parts.teacher is not None:
        clip_ids = train_ids(run)
        this["teacher"] = run.parts.teacher.identity(clip_ids)
        if hparams["teaching"]["teacher_logits"] is not None:
            this["teacher"] += ", stored"
    done = [
        found for name in ("save/CKPT*", "model") for found in run.folder.glob(name)
    ]
    claim_folder(run.folder, this, started=bool(done))


def train_ids(run: Run) -> list[str]:
    """Returns the ids of the clips to train on."""
    rows = run.clips.rows.select(run.split.train).select_columns(["video_id"])
    return [str(clip_id) for clip_id in rows["video_id"][:]]


def train_and_test(run: Run, run_opts: Any) -> None:
    """Trains a detector, and writes the best one with its scores."""
    hparams, split = run.hparams, run.split
    brain = EventBrain(
        modules=run.parts.modules,
        opt_class=hparams["opt_class"],
        hparams=hparams | run.parts._asdict(),
        run_opts=run_opts,
        checkpointer=run.parts.checkpointer,
    )
    brain.halves = halves = halves_of(hparams)
    train_set = Clips(
        run.clips.rows.select(split.train),
        run.reader,
        hparams["waveform_augment"],
        hparams["waveform_mix"],
        hparams["seed"],
        replace_unreadable=True,
        is_strong=None if halves is None else which_are_strong(run.clips, split),
    )
    sampler = draws(run.clips, split, hparams)
    brain.fit(
        run.parts.epoch_counter,
        train_set,
        run.on(split.valid) if split.valid else None,
        train_loader_kwargs=hparams["train_loader"] | {"sampler": sampler},
        valid_loader_kwargs=dict(hparams["eval_loader"]),
    )
    brain.on_evaluate_start(max_key="PSDS1" if split.valid else None)
    run_on_main(finish, args=(brain, run))


def draws(clips: EventClips, split: Split, hparams: dict[str, Any]) -> Draws:
    """Draws the clips of an epoch, as the YAML says: by class, or in two halves."""
    sampling, seed, weights = hparams["sampling"], hparams["seed"], None
    number, is_strong = sampling["clips_per_epoch"], which_are_strong(clips, split)
    strong_clips = sampling["strong_clips"]
    in_halves = strong_clips is not None
    if sampling["weak_mixup_alpha"] is not None and not in_halves:
        raise ValueError(
            "weak_mixup_alpha mixes the weak half of a batch; pass strong_clips, the "
            "size of the other half, too"
        )
    rows = clips.rows.select(split.train)
    if sampling["class_balanced"]:
        weighted = rows.select(np.flatnonzero(~is_strong)) if in_halves else rows
        indices = summarize_rows(weighted, clips.labels).indices
        weights = class_balanced_weights(indices, len(clips.labels))
    batch_size = hparams["train_loader"]["batch_size"]
    found = (
        HalvedDraws(is_strong, strong_clips, batch_size, number, weights, seed)
        if in_halves
        else Draws(len(rows), number, weights, seed)
    )
    per_step = batch_size * hparams["grad_accumulation_factor"]
    if len(found) // world_size() < per_step and hparams["train_loader"]["drop_last"]:
        raise ValueError(
            f"batch_size={batch_size} and grad_accumulation_factor="
            f"{hparams['grad_accumulation_factor']} need {per_step} clips a step "
            f"and process, but an epoch has {len(found) // world_size()}; lower them, "
            "or raise clips_per_epoch"
        )
    return found


def halves_of(hparams: dict[str, Any]) -> Halves | None:
    """How the halves of a batch are mixed; None: batches have no halves."""
    alpha = hparams["sampling"]["weak_mixup_alpha"]
    if hparams["sampling"]["strong_clips"] is None:
        return None
    return Halves(hparams["mixup"], None if alpha is None else Mixup(alpha))


def which_are_strong(clips: EventClips, split: Split) -> NDArray[np.bool_]:
    """[rows to train on], whether the events of a clip are known."""
    names = clips.rows.select(split.train)["video_id"]
    return np.array([name in clips.events for name in names], bool)


def finish(brain: EventBrain, run: Run) -> None:
    """Writes the model, scores it, and prints the scores and where the model is.

    The scores are those that ``EventDetector`` gets from the model folder, on whole
    sounds.
    """
    folder = run.folder
    model = trained_model(
        run.hparams, run.parts.student, run.clips.labels, "multilabel"
    )
    write_model_folder(folder / "model", model, describe_origin(run, brain))
    device = str(brain.device)
    chosen = choose_thresholds(run, device)
    model = model._replace(event_options=event_options_of(run, chosen))
    origin = describe_origin(run, brain)._replace(thresholds=chosen)
    write_model_folder(folder / "model", model, origin)
    write_split(folder / "split.csv", run.split, run.clips.rows["video_id"])
    found: dict[str, DetectionScores] = {}
    if run.split.test:
        scores = score(run, run.split.test, device, chosen).summarize()
        brain.log_test(scores)
        write_scores(folder, scores, run.clips.labels)
        found[f"test, {scores.num_clips} clips"] = scores
        write_model_folder(folder / "model", model, origin._replace(scores=found))
    epochs = run.hparams["history"].epochs
    scores = next(iter(found.values()), brain.scores)
    lines = [RunResult("each epoch", scores, None, epochs, "validation")]
    plot_curves(folder / "curves.png", lines)
    if run.split.valid:
        print(f"Epoch {brain.loaded_epoch} of {len(epochs)} is kept")
    for name, scores in found.items():
        print(f"{name}: {scores}")
    if not found:
        print("There are no test clips, so this model has no score.")
    print(f"The model is in {folder / 'model'}")


def choose_thresholds(run: Run, device: str) -> ChosenThresholds | None:
    """Chooses the thresholds of classes on validation clips; None: all keep one."""
    stats = run.parts.make_stats()
    if stats.thresholds_by is None:
        return None
    if not run.split.valid:
        print(f"No validation clips: the threshold of all classes is {stats.threshold}")
        return None
    chosen = score(run, run.split.valid, device).choose_thresholds()
    print(f"On {len(run.split.valid)} validation clips, {chosen}")
    return chosen


def event_options_of(run: Run, chosen: ChosenThresholds | None) -> dict[str, Any]:
    """Returns how scores become events, as they were scored, for the model folder."""
    scoring = run.hparams["scoring"]
    threshold = scoring["threshold"] if chosen is None else chosen.thresholds
    return {"median_seconds": scoring["median_seconds"], "threshold": threshold}


def score(
    run: Run, places: list[int], device: str, chosen: ChosenThresholds | None = None
) -> DetectionStats:
    """Scores the frames of clips by the model folder, from beginning to end."""
    scoring = dict(run.hparams["scoring"])
    if chosen is not None:
        scoring["threshold"] = dict(zip(chosen.classes, chosen.thresholds, strict=True))
    detector = EventDetector.from_hparams(
        str(run.folder / "model"), run_opts={"device": device}
    )
    stats = DetectionStats(
        run.clips.events,
        run.clips.seconds,
        run.clips.labels.names,
        detector.frame_samples / detector.sample_rate,
        **scoring,
    )
    skipped = SkippedClips(run.hparams["max_unreadable_share"])
    rows = run.clips.rows.select(places)
    for clip_id, scores in whole_clip_frames(detector, rows, skipped):
        stats.append([clip_id], torch.from_numpy(scores.T[None]))
    return stats


def describe_origin(run: Run, brain: EventBrain) -> Provenance:
    """Describes the origin of the model, for its card."""
    dataset, split = run.hparams["dataset"], run.split
    taught = "without a teacher"
    if run.parts.teacher is not None and run.hparams["loss"].kd_weight:
        teacher, name = run.parts.teacher, run.hparams["teacher"]
        if isinstance(teacher, StoredFrameTeacher):
            name = teacher.name
        taught = f"taught by {name_of(name)}"
    return Provenance(
        name=f"{Path(dataset).resolve().name}, events",
        started_from=source_of(run.hparams),
        data=f"{name_of(dataset)}: {len(split.train)} clips for training, {taught}; "
        f"{len(split.valid)} to choose epoch {brain.loaded_epoch}",
        data_licence=run.clips.rows.info.license or "",
        scores={},
    )


if __name__ == "__main__":
    start(main, refusals=(TooManyUnreadable,))
