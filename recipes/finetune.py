"""Fine-tunes a published tagger or detector on labelled sounds: your own, ESC-50, ...

> python recipes/finetune.py hparams/finetune.yaml --dataset PATH
> python recipes/finetune.py hparams/esc50.yaml --dataset ashraq/esc50 --fold 3
> python recipes/finetune.py hparams/finetune_events.yaml --dataset PATH --events TABLE

Rerun the same command to resume an interrupted run. The model folder is
OUTPUT_FOLDER/model; ``AudioTagger.from_hparams`` loads it, ``EventDetector`` one of
events.
"""

import copy
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.epoch_loop import EpochCounterWithStopper

from efficientat_plugin.data.labelled import (
    LabelledClips,
    open_labelled,
    runs_of,
    split_in_words,
)
from efficientat_plugin.data.labels import LabelSummary
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.sampling import Draws, class_balanced_weights
from efficientat_plugin.data.skipped import SkippedClips, TooManyUnreadable
from efficientat_plugin.data.splits import Split, split_digest, write_split
from efficientat_plugin.data.summary import describe
from efficientat_plugin.evaluation.metrics import (
    ClassificationScores,
    ClassificationStats,
    Scores,
    TaggingStats,
)
from efficientat_plugin.evaluation.report import (
    RunResult,
    plot_confusion,
    plot_curves,
    write_scores,
)
from efficientat_plugin.pretrained.card import name_of
from efficientat_plugin.pretrained.description import (
    Unstated,
    find_model_folder,
    identity_of_weights,
)
from efficientat_plugin.pretrained.folder import (
    Provenance,
    read_model_folder,
    write_model_folder,
)
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.support.console import keep_log
from efficientat_plugin.support.files import explain_write_errors
from efficientat_plugin.support.launch import (
    check_folder,
    claim_folder,
    load_hparams,
    parse_and_join,
    settings_of,
    start,
    world_size,
    yaml_to_save,
)
from efficientat_plugin.support.options import read_yaml
from efficientat_plugin.support.plain_text import shown, some_of
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.tagging.whole_clips import whole_clip_stats
from efficientat_plugin.teachers.load import open_teachers, refuse_others
from efficientat_plugin.teachers.stored import (
    StoredTeacher,
    is_store,
    warn_of_other_clips,
)
from efficientat_plugin.training.finetuning import (
    FineTuningBrain,
    plan_epochs,
    seconds_per_step,
    weights_to_keep,
)
from efficientat_plugin.training.losses import DistillationLoss, balanced_class_weights
from efficientat_plugin.training.probe import Probe, fit_probe
from efficientat_plugin.training.recipe_parts import (
    augmented_clips,
    checkpointer_of,
    modules_of,
    plain_clips,
    store_logits,
    trained_model,
)

logger = logging.getLogger(__name__)

# In the folder of a run
START = "start.json"  # the validation score before training
KEPT_EPOCH = "kept_epoch.json"
KEEP_EPOCH = ("last", "best")  # legal values of the option


class Run(NamedTuple):
    """The data, settings and parts of one run; each fold is a run."""

    clips: LabelledClips
    split: Split
    hparams: dict[str, Any]
    device: str
    folds: Mapping[str, Scores] = {}  # for a model of all clips: the folds' scores
    parts: Any = None  # `Parts`, once built

    @property
    def folder(self) -> Path:
        return Path(self.hparams["output_folder"])


class Parts(NamedTuple):
    """The objects that depend on data and weights; the YAML builds the others."""

    student: Student
    modules: dict[str, torch.nn.Module]
    teacher: StoredTeacher | None
    loss: DistillationLoss
    make_stats: Callable[[], TaggingStats]
    lr_schedule: Callable[[int], float] | None
    epoch_counter: EpochCounterWithStopper
    checkpointer: AtomicCheckpointer
    class_layer_start: dict[str, torch.Tensor] | None  # None: the probe's


def main(argv: list[str]) -> None:
    """Reads, splits, trains, tests and writes as the YAML and the overrides say."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    if run_opts.test_only:
        sys.exit("--test_only works in audioset_kd.py only; runs here end with a test")
    if "events" in read_yaml(hparams_file):  # those of a detector
        from audioset_strong import train_detector

        train_detector(hparams_file, run_opts, overrides)
        return
    hparams = load_hparams(hparams_file, overrides)
    if (keep := hparams["stopping"]["keep_epoch"]) not in KEEP_EPOCH:
        raise ValueError(f"keep_epoch={keep!r} must be one of {KEEP_EPOCH}")
    parent = Path(hparams["output_folder"])
    device = run_opts.device or sb.utils.distributed.infer_device()
    clips, clip_seconds = open_clips(hparams)
    overrides["clip_seconds"] = clip_seconds
    hparams = load_hparams(hparams_file, overrides)
    splits, overrides["number_of_epochs"] = split_clips(clips, hparams, device)
    command = Command(hparams_file, run_opts, overrides, clips, device)
    folders = {n: parent / n if n.startswith("fold") else parent for n in splits}
    for name, split in splits.items():  # check all before training any
        run, settings = command.run_of(split, folders[name])
        refuse_another_run(run, settings, check_folder)
    tested: dict[str, Scores] = {}
    for name, split in splits.items():
        scores = command.fine_tune(split, folders[name])
        tested |= {} if scores is None else {name: scores}
    if len(tested) > 1 and if_main_process():
        (parent / "folds.txt").write_text(spread(tested) + "\n")
        print(spread(tested))
    if hparams["splitting"]["final"] and tested:
        everything = Split(list(range(len(clips.rows))), [], [])
        if nothing_was_learnt([*folders.values()]):
            overrides["number_of_epochs"] = 0
        command.fine_tune(everything, parent / "final", tested)


class Command(NamedTuple):
    """Everything that the runs of one command share."""

    hparams_file: str
    run_opts: Any
    overrides: dict[str, Any]
    clips: LabelledClips
    device: str

    def run_of(self, split: Split, folder: Path) -> tuple[Run, dict[str, Any]]:
        """Returns the run of a split, with parts of its own, and its settings."""
        overrides = self.overrides | {"output_folder": str(folder)}
        hparams = load_hparams(self.hparams_file, overrides)
        settings = settings_of(self.hparams_file, overrides, self.run_opts)
        return Run(self.clips, split, hparams, self.device), settings

    def fine_tune(
        self, split: Split, folder: Path, folds: Mapping[str, Scores] | None = None
    ) -> Scores | None:
        """Trains one split in its folder."""
        run, settings = self.run_of(split, folder)
        with explain_write_errors(folder):
            refuse_another_run(run, settings)
            overrides = self.overrides | {"output_folder": str(folder)}
            sb.create_experiment_directory(
                str(folder), **yaml_to_save(self.hparams_file, overrides)
            )
            keep_log()
            return fine_tune(run._replace(folds=folds or {}), self.run_opts)


def nothing_was_learnt(folds: Sequence[Path]) -> bool:
    """Whether most runs kept the model from before training.

    A model of all clips has no validation clips to decide this with.
    """
    kept = [json.loads((folder / KEPT_EPOCH).read_text()) for folder in folds]
    return statistics.median(kept) == 0


def open_clips(hparams: dict[str, Any]) -> tuple[LabelledClips, float]:
    """Opens the clips that the YAML names, prints a summary, decides their length."""
    dataset, clip_seconds = hparams["dataset"], hparams["clip"]["clip_seconds"]
    clips = open_labelled(
        dataset,
        hparams["facts"],
        config=hparams["hub"]["dataset_config"],
        cache_dir=hparams["hub"]["dataset_cache"],
        **hparams["table"],
    )
    found = describe(clips.rows, clip_seconds=clip_seconds)
    if if_main_process():
        print(f"{dataset}, {clips.target}:\n{found}")
        if clip_seconds == "auto":
            print(f"clip_seconds: {found.clip_seconds:g} s; most clips are no longer")
    return clips, float(found.clip_seconds)


def split_clips(
    clips: LabelledClips, hparams: dict[str, Any], device: str
) -> tuple[dict[str, Split], int]:
    """Splits the clips by run, for training, validation and test; plans the epochs."""
    splitting, epochs = hparams["splitting"], hparams["number_of_epochs"]

    def runs(valid_share: float) -> dict[str, Split]:
        return runs_of(
            clips.rows,
            splitting["split"],
            splitting["fold"],
            valid_share,
            splitting["test_share"],
            hparams["seed"],
        )

    split = min(runs(0.0).values(), key=lambda split: len(split.train))
    run, num_groups = Run(clips, split, hparams, device), None
    if "group" in clips.rows.column_names:
        num_groups = len(set(clips.rows.select(split.train)["group"]))
    # A probe alone would not use the teacher.
    has_probe = begins_with_probe(hparams) and hparams["teacher"] is None
    plan = plan_epochs(
        len(split.train),
        len(clips.labels),
        hparams["train_loader"]["batch_size"],
        num_groups,
        partial(probe_of, run) if has_probe and epochs == "auto" else None,
    )
    if epochs == "auto":
        epochs = plan.epochs
        if if_main_process():
            print(f"number_of_epochs: {epochs}, {plan.why}")
    share = splitting["valid_share"]
    if share == "auto":
        share = plan.valid_share
    # Without epochs to choose from, no validation clips are needed.
    splits = runs(share if epochs else 0.0)
    if if_main_process():
        print(f"split: {split_in_words(clips.rows, splits, hparams['seed'])}")
    return splits, epochs


def probe_of(run: Run) -> Probe:
    """Fits a probe to the training clips of a run."""
    return start_from_probe(run, build_modules(run.hparams, make_student(run)))


def refuse_another_run(
    run: Run, settings: dict[str, Any], take: Callable[..., None] = claim_folder
) -> None:
    """Refuses to continue a run of other clips or other settings in this folder."""
    hparams = run.hparams
    this = settings | {"target": run.clips.target}
    this |= split_digest(run.clips.rows, run.split)
    this["pretrained"] = identity_of_weights(hparams["start_from"]["pretrained"])
    this["teacher"] = identity_of_weights(hparams["teacher"])
    if hparams["teacher"] is not None and is_store(hparams["teacher"]):
        clip_ids = labels_to_train_on(run).clip_ids
        this["teacher"] = StoredTeacher(hparams["teacher"]).identity(clip_ids)
    patterns = ("save/CKPT*", "model")  # stored logits record their own teacher
    done = [found for pattern in patterns for found in run.folder.glob(pattern)]
    take(run.folder, this, started=bool(done))


def fine_tune(run: Run, run_opts: Any) -> Scores:
    """Trains and tests a model, and writes it with its scores."""
    hparams, split = run.hparams, run.split
    warn_of_classes_without_clips(run)
    run = run._replace(parts=build_parts(run))
    if begins_with_probe(hparams):
        start_from_probe(run, run.parts.modules)
    brain = hparams["brain_class"](
        modules=run.parts.modules,
        opt_class=hparams["opt_class"],
        hparams=hparams | run.parts._asdict(),
        run_opts=run_opts,
        checkpointer=run.parts.checkpointer,
    )
    train(brain, run)
    main = "accuracy" if run.clips.target == "multiclass" else "mAP"
    kept = choose(run, main)
    brain.on_evaluate_start(max_key=main if kept == "best" else None)
    run_on_main(report_kept, args=(run, main, kept))
    if kept == "start":
        restore_start(run)
        brain.loaded_epoch = 0
    cut_scores = None
    if hparams["score_cut_clips"] and split.test:
        brain.checkpointer = None  # the kept weights are loaded already
        brain.evaluate(
            plain_clips(hparams, run.clips.labels, run.clips.rows, split.test),
            test_loader_kwargs=dict(hparams["eval_loader"]),
        )
        cut_scores = brain.scores
    return run_on_main(finish, args=(brain, run, cut_scores))


def choose(run: Run, main: str) -> str:
    """Chooses the weights to keep by the score ``main``: start, best or newest."""
    checkpointer, valid = run.parts.checkpointer, run.split.valid
    best = checkpointer.find_checkpoint(max_key=main) if valid else None
    if best is None:
        return "newest"
    if run.hparams["stopping"]["keep_epoch"] == "best":
        return "best"
    start = json.loads((run.folder / START).read_text())[main]
    newest = checkpointer.find_checkpoint().meta[main]
    return weights_to_keep(start, best.meta[main], newest, len(valid))


def report_kept(run: Run, main: str, kept: str) -> None:
    """Prints and records which epoch is kept, or that no epoch beat the start."""
    epochs, number = run.hparams["history"].epochs, run.hparams["number_of_epochs"]
    if run.split.valid and epochs:
        by_key = {"max_key": main} if kept == "best" else {}
        chosen = run.parts.checkpointer.find_checkpoint(**by_key)
        number = 0 if kept == "start" else chosen.meta["epoch"]
        if number:
            score = f"{main} {chosen.meta[main]:.4f}"
            print(
                f"Epoch {number} of {len(epochs)} is kept: {score} on validation clips"
            )
        else:
            print(
                f"No epoch did better on the {len(run.split.valid)} validation clips "
                "than the start, beyond chance; the model from before training is kept."
            )
    (run.folder / KEPT_EPOCH).write_text(json.dumps(number))


def restore_start(run: Run) -> None:
    """Undoes training, and fits the probe to the validation clips as well."""
    run.parts.student.load_state_dict(make_student(run).state_dict())
    if begins_with_probe(run.hparams):
        places = [*run.split.train, *run.split.valid]
        start_from_probe(run, run.parts.modules, places)


def make_student(run: Run) -> Student:
    """Loads the student that training starts from, with a class layer for the data."""
    start_from, labels = run.hparams["start_from"], run.clips.labels
    if not continues_training(run.hparams):
        stated = run.hparams["log_mel"].keywords.items()
        try:
            return load_student(
                start_from["pretrained"],
                num_classes=len(labels),
                savedir=start_from["pretrained_folder"],
                head=start_from["head"],
                **{name: value for name, value in stated if "jitter" not in name},
            )
        except Unstated as error:
            how = '--log_mel "{n_mels: ..., hop_length: ...}"'
            raise ValueError(error.sentence({"front end": how})) from error
    model = read_model_folder(start_from["pretrained"])
    if model.labels.mids != labels.mids:
        raise ValueError(
            f"the model in {start_from['pretrained']} has {len(model.labels)} classes, "
            f"and the data has {len(labels)} other ones; start from a published model, "
            "or from a model of the same classes"
        )
    return model.student


def continues_training(hparams: dict[str, Any]) -> bool:
    """Whether training starts from a model folder and keeps its classes."""
    return find_model_folder(hparams["start_from"]["pretrained"]) is not None


def begins_with_probe(hparams: dict[str, Any]) -> bool:
    """Whether a probe is the model from before training."""
    has_ridge = hparams["start_from"]["probe_ridge"] is not None
    return has_ridge and not continues_training(hparams)


def build_modules(
    hparams: dict[str, Any], student: Student
) -> dict[str, torch.nn.Module]:
    """Puts the student and its front end into modules."""
    log_mel = hparams["log_mel"](**student.front_end)
    sample_rate = hparams["clip"]["sample_rate"]
    if log_mel.sample_rate != sample_rate:
        raise ValueError(
            f"sample_rate={sample_rate} Hz, but {hparams['start_from']['pretrained']} "
            f"needs {log_mel.sample_rate} Hz; pass --sample_rate {log_mel.sample_rate}"
        )
    return modules_of(hparams, student, log_mel)


def build_parts(run: Run) -> Parts:
    """Builds the objects that depend on data and weights."""
    hparams, clips, epochs = run.hparams, run.clips, run.hparams["number_of_epochs"]
    student = make_student(run)
    class_weights = class_layer_start = None
    if hparams["balance"]["class_weights"]:
        indices = labels_to_train_on(run).indices
        class_weights = balanced_class_weights(indices, len(clips.labels))
    lr_schedule = hparams["lr_schedule"]
    if isinstance(lr_schedule, partial):
        lr_schedule = lr_schedule(number_of_epochs=max(epochs, 1))
    starts_anew = hparams["start_from"]["class_layer"] == "new"
    if epochs and starts_anew and begins_with_probe(hparams):
        class_layer_start = copy.deepcopy(student.class_layer().state_dict())
    epoch_counter = hparams["epoch_counter"](limit=epochs, direction="max")
    model = trained_model(hparams, student, clips.labels, clips.target)
    return Parts(
        student=student,
        modules=build_modules(hparams, student),
        teacher=open_teacher(run),
        loss=hparams["loss"](target=clips.target, class_weights=class_weights),
        make_stats=(
            ClassificationStats if clips.target == "multiclass" else TaggingStats
        ),
        lr_schedule=lr_schedule,
        epoch_counter=epoch_counter,
        checkpointer=checkpointer_of(hparams, model, epoch_counter),
        class_layer_start=class_layer_start,
    )


def open_teacher(run: Run) -> StoredTeacher | None:
    """Opens stored logits, or computes those of a teacher for the training clips."""
    hparams, labels, source = run.hparams, run.clips.labels, run.hparams["teacher"]
    if source is None:
        return None
    if is_store(source):
        teacher, clip = StoredTeacher(source), hparams["clip"]
        warn_of_other_clips(teacher, clip["clip_seconds"], clip["short_clips"])
        teacher.check(labels_to_train_on(run), labels, target=run.clips.target)
        return teacher
    network, theirs, kind = open_teachers(
        source,
        sample_rate=hparams["clip"]["sample_rate"],
        savedir=hparams["start_from"]["pretrained_folder"],
        options=hparams["teacher_options"],
        wanted=labels,
    )
    refuse_others(theirs, kind, labels, run.clips.target)
    rows, path = run.clips.rows.select(run.split.train), run.folder / "teacher_logits"
    network = network.to(run.device)
    return store_logits(hparams, path, source, network, labels, rows, run.device)


def start_from_probe(
    run: Run,
    modules: dict[str, torch.nn.Module],
    places: Sequence[int] | None = None,
) -> Probe:
    """Fits the class layer to clips in closed form; None: to the training clips."""
    places = run.split.train if places is None else places
    hparams, rows = run.hparams, run.clips.rows.select(places)
    if "judged" in rows.column_names:
        raise ValueError(
            "the clips are labelled for some classes only, which a probe does not "
            "support; pass --probe_ridge null and --number_of_epochs 80"
        )
    group_of: dict[str, str] = {}
    if "group" in rows.column_names:
        group_of = dict(zip(rows["video_id"], rows["group"], strict=True))
    student = modules["student"].eval().to(run.device)
    log_mel = modules["log_mel"].eval().to(run.device)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        for batch in read_batches(
            plain_clips(hparams, run.clips.labels, run.clips.rows, places),
            "probe",
            hparams["max_unreadable_share"],
            **hparams["eval_loader"],
        ):
            groups = [group_of.get(clip_id) or clip_id for clip_id in batch.clip_id]
            waveform = batch.waveform.to(run.device)
            yield log_mel(waveform).unsqueeze(1), batch.labels, groups

    ridge = hparams["start_from"]["probe_ridge"]
    return fit_probe(student, batches(), run.clips.target, ridge)


def train(brain: FineTuningBrain, run: Run) -> None:
    """Trains from the start, or resumes from the last checkpoint."""
    hparams, split, labels = run.hparams, run.split, run.clips.labels
    valid = None  # without validation clips the last epoch is kept
    if split.valid:
        valid = plain_clips(hparams, labels, run.clips.rows, split.valid)
    starts = not run.parts.checkpointer.list_checkpoints()
    if split.valid and starts and hparams["number_of_epochs"]:
        brain.score_start(valid, dict(hparams["eval_loader"]))
        run_on_main(write_start, args=(run, brain.scores))
    if hparams["number_of_epochs"] and if_main_process():
        print(plan(run))
    brain.fit(
        run.parts.epoch_counter,
        augmented_clips(hparams, labels, run.clips.rows.select(split.train)),
        valid,
        train_loader_kwargs=hparams["train_loader"] | {"sampler": draws(run)},
        valid_loader_kwargs=dict(hparams["eval_loader"]),
    )


def write_start(run: Run, scores: Scores) -> None:
    """Writes the score before training, which a resumed run needs at its end."""
    (run.folder / START).write_text(json.dumps(scores.averages()))


def plan(run: Run) -> str:
    """Returns a line with the clips, epochs, steps and time of training."""
    hparams, split = run.hparams, run.split
    epochs, clip = hparams["number_of_epochs"], hparams["clip"]
    batch_size = hparams["train_loader"]["batch_size"]
    steps = math.ceil(len(split.train) / batch_size / world_size())
    step_seconds = seconds_per_step(
        run.parts.modules["log_mel"],
        run.parts.student,
        batch_size,
        round(clip["clip_seconds"] * clip["sample_rate"]),
        run.device,
    )
    # Scoring a clip takes about a third of the time of training on it.
    scored = len(split.valid) / batch_size / 3
    minutes = epochs * (steps + scored) * step_seconds / 60
    return (
        f"Training on {len(split.train)} clips of {clip['clip_seconds']:g} s: "
        f"{epochs} epochs of {steps} step{'s' * (steps != 1)}, "
        f"at most about {max(minutes, 1):.0f} min"
    )


def draws(run: Run) -> Draws:
    """Draws the clips of an epoch; rare classes more often if the YAML says so."""
    weights = None
    if run.hparams["balance"]["class_balanced"]:
        indices = labels_to_train_on(run).indices
        weights = class_balanced_weights(indices, len(run.clips.labels))
    return Draws(len(run.split.train), None, weights, run.hparams["seed"])


def warn_of_classes_without_clips(run: Run) -> None:
    """Warns of classes with validation or test clips and no training clips."""

    def classes(places: Sequence[int]) -> set[int]:
        rows = run.clips.rows.select(places)
        return {
            k for one in summarize_rows(rows, run.clips.labels).indices for k in one
        }

    split = run.split
    missing = classes([*split.valid, *split.test]) - classes(split.train)
    if missing:
        names = some_of(run.clips.labels.names[k] for k in sorted(missing))
        logger.warning(
            "%d of %d classes have clips to test on and none to train on, so the model "
            "cannot learn them: %s",
            len(missing),
            len(run.clips.labels),
            names,
        )


def labels_to_train_on(run: Run) -> LabelSummary:
    """Returns the ids and classes of the training clips."""
    return summarize_rows(run.clips.rows.select(run.split.train), run.clips.labels)


def finish(
    brain: FineTuningBrain, run: Run, cut_scores: Scores | None
) -> Scores | None:
    """Writes the model, scores it, and prints the scores and where the model is.

    The scores are those that ``AudioTagger`` gets from the model folder, on whole
    sounds.
    """
    hparams, folder = run.hparams, run.folder
    clips = run.clips
    model = trained_model(hparams, run.parts.student, clips.labels, clips.target)
    write_model_folder(folder / "model", model, describe_origin(run, {}))
    write_split(folder / "split.csv", run.split, clips.rows["video_id"])
    tested = test(run, str(brain.device)) if run.split.test else {}
    for scores in [*tested.values()][:1]:
        brain.log_test(scores)
    found = dict(tested)
    for name, scores in run.folds.items():
        found[f"{name}, by a model trained on the others"] = scores
    if cut_scores is not None:
        seconds = f"{hparams['clip']['clip_seconds']:g} s"
        found[f"test, the first {seconds} of each clip alone"] = cut_scores
    write_model_folder(folder / "model", model, describe_origin(run, found))
    draw_epochs(brain, run, tested)
    for name, scores in found.items():
        print(f"{shown(name)}: {scores}")
    if not run.split.test:
        print("There are no test clips, so this model itself has no score.")
    if len(run.folds) > 1:
        print(f"The scores of the folds:\n{spread(run.folds)}")
    print(f"The model is in {folder / 'model'}")
    return next(iter(tested.values()), None)


def test(run: Run, device: str) -> dict[str, Scores]:
    """Scores the model folder on the test clips, and writes the results."""
    folder, rows = run.folder, run.clips.rows.select(run.split.test)
    tagger = AudioTagger.from_hparams(
        str(folder / "model"), run_opts={"device": device}
    )
    skipped = SkippedClips(run.hparams["max_unreadable_share"])
    stats = whole_clip_stats(tagger, rows, skipped)
    scores = stats.summarize()
    write_scores(folder, scores, run.clips.labels)
    if isinstance(scores, ClassificationScores):
        plot_confusion(folder / "confusion.png", scores, run.clips.labels)
    found: dict[str, Scores] = {f"test, {scores.num_clips} clips": scores}
    if "device" in rows.column_names:
        device_of = dict(zip(rows["video_id"], rows["device"], strict=True))
        by_device = stats.by_group({k: str(v) for k, v in device_of.items()})
        found |= {f"device {name}": part for name, part in by_device.items()}
    return found


def draw_epochs(brain: FineTuningBrain, run: Run, found: dict[str, Scores]) -> None:
    """Plots the scores of all epochs, and that of the kept one."""
    scores = next(iter(found.values()), brain.scores)
    epochs = run.hparams["history"].epochs
    lines = [RunResult("each epoch", scores, None, epochs, "validation")]
    if found:
        kept = f"epoch {brain.loaded_epoch}, which is kept"
        lines.append(RunResult(kept, scores, clips="test"))
    plot_curves(run.folder / "curves.png", lines)


def describe_origin(run: Run, scores: dict[str, Scores]) -> Provenance:
    """Describes the origin of the model, for its card."""
    rows, split, dataset = run.clips.rows, run.split, run.hparams["dataset"]
    sizes = f"{len(split.train)} for training, {len(split.valid)} to choose the epoch"
    if json.loads((run.folder / KEPT_EPOCH).read_text()) == 0:
        fitted = len(split.train) + len(split.valid)
        sizes = f"{fitted} for the model from before training; no epoch of it is kept"
        if begins_with_probe(run.hparams):
            sizes = f"a probe, fitted in closed form to {fitted} of them"
    return Provenance(
        name=Path(dataset).resolve().name,
        started_from=str(run.hparams["start_from"]["pretrained"]),
        data=f"{name_of(dataset)}: {len(rows)} clips ({sizes})",
        data_licence=rows.info.license,
        scores=scores,
    )


def spread(scores: Mapping[str, Scores]) -> str:
    """Lists the score of each fold, with mean and standard deviation."""
    values = [found.averages()[found.main] for found in scores.values()]
    name = next(iter(scores.values())).main
    lines = [f"{fold}: {found}" for fold, found in scores.items()]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    lines.append(
        f"{name} {mean:.4f}, standard deviation {deviation:.4f} of {len(values)} folds"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    start(main, refusals=(TooManyUnreadable,))
