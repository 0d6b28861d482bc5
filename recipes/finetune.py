"""Fine-tunes a published tagger on labelled sounds: your own, ESC-50, FSD50K.

> python recipes/finetune.py hparams/finetune.yaml --dataset PATH
> python recipes/finetune.py hparams/esc50.yaml --dataset ashraq/esc50 --fold 3

Rerun the same command to resume an interrupted run. The model folder is
OUTPUT_FOLDER/model; ``AudioTagger.from_hparams`` loads it.
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
    TABLE_OPTIONS,
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
from efficientat_plugin.data.splits import Split, split_digest
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
from efficientat_plugin.pretrained.described import (
    Unstated,
    find_model_folder,
    identity_of_weights,
)
from efficientat_plugin.pretrained.folder import (
    Provenance,
    describe_checkpoints,
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
)
from efficientat_plugin.support.plain_text import shown, some_of
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.tagging.whole_clips import whole_clip_stats
from efficientat_plugin.teachers.load import open_teachers, refuse_others
from efficientat_plugin.teachers.store.dump import fill_store
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.stored import (
    StoredTeacher,
    is_store,
    warn_of_other_clips,
)
from efficientat_plugin.training.brain import History
from efficientat_plugin.training.finetuning import (
    FEWEST_CLIPS_PER_CLASS,
    SHARE_RIGHT,
    FineTuningBrain,
    epochs_for,
    seconds_per_step,
    standard_error,
)
from efficientat_plugin.training.losses import DistillationLoss, balanced_class_weights
from efficientat_plugin.training.parts import (
    augmented_clips,
    modules_of,
    plain_clips,
    trained_model,
)
from efficientat_plugin.training.probe import Probe, fit_probe

logger = logging.getLogger(__name__)

# Share of the clips that the epoch is chosen on ("auto"): with many and with few clips
VALID_SHARE, FEW_VALID_SHARE, FEW_CLIPS_PER_CLASS = 0.15, 0.25, 30
FEW_GROUPS = 7  # with fewer, a single group is more than VALID_SHARE
# In the folder of a run
START = "start.json"  # the validation score before training
KEPT_EPOCH = "kept_epoch.json"


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
    history: History
    epoch_counter: EpochCounterWithStopper
    checkpointer: AtomicCheckpointer
    class_layer_start: dict[str, torch.Tensor] | None  # None: the probe's


def main(argv: list[str]) -> None:
    """Reads, splits, trains, tests and writes as the YAML and the overrides say."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    if run_opts.test_only:
        sys.exit("--test_only works in audioset_kd.py only; runs here end with a test")
    hparams = load_hparams(hparams_file, overrides)
    parent = Path(hparams["output_folder"])
    device = run_opts.device or sb.utils.distributed.infer_device()
    try:
        clips, clip_seconds = open_clips(hparams)
        splits, number_of_epochs = split_clips(
            clips, hparams | {"clip_seconds": clip_seconds}, device
        )
    except (ImportError, OSError, ValueError, TooManyUnreadable) as error:
        sys.exit(str(error))
    found = {"clip_seconds": clip_seconds, "number_of_epochs": number_of_epochs}
    overrides, start = overrides | found, _Start(hparams_file, run_opts, clips, device)
    folders = {n: parent / n if n.startswith("fold") else parent for n in splits}
    settings = settings_of(hparams_file, overrides, run_opts)
    try:
        for name, split in splits.items():  # check all before training any
            place = hparams | {"output_folder": str(folders[name])}
            refuse_another_run(Run(clips, split, place, device), settings, check_folder)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    scores: dict[str, Scores | None] = {}
    for name, split in splits.items():
        overrides["output_folder"] = str(folders[name])
        scores[name] = start.run(split, overrides)
    tested = {name: one for name, one in scores.items() if one is not None}
    if len(tested) > 1 and if_main_process():
        (parent / "folds.txt").write_text(spread(tested) + "\n")
        print(spread(tested))
    if hparams["final"] and tested:
        everything = Split(list(range(len(clips.rows))), [], [])
        overrides["output_folder"] = str(parent / "final")
        if nothing_was_learnt([*folders.values()]):
            overrides["number_of_epochs"] = 0
        start.run(everything, overrides, tested)


class _Start(NamedTuple):
    """Everything that the runs of one command share."""

    hparams_file: str
    run_opts: Any
    clips: LabelledClips
    device: str

    def run(
        self,
        split: Split,
        overrides: dict[str, Any],
        folds: Mapping[str, Scores] | None = None,
    ) -> Scores | None:
        """Trains one split with its own parts; exits with a message on an error."""
        hparams = load_hparams(self.hparams_file, overrides)
        run = Run(self.clips, split, hparams, self.device, folds or {})
        settings = settings_of(self.hparams_file, overrides, self.run_opts)
        try:
            with explain_write_errors(run.folder):
                refuse_another_run(run, settings)
                sb.create_experiment_directory(
                    str(run.folder), hparams_to_save(self.hparams_file), overrides
                )
                keep_log()
                return fine_tune(run, self.run_opts)
        except (ImportError, OSError, ValueError, TooManyUnreadable) as error:
            logger.debug("Where the run stopped:", exc_info=True)  # in log.txt only
            sys.exit(str(error))


def nothing_was_learnt(folds: Sequence[Path]) -> bool:
    """Whether most runs kept the model from before training.

    A model of all clips has no validation clips to decide this with.
    """
    kept = [json.loads((folder / KEPT_EPOCH).read_text()) for folder in folds]
    return statistics.median(kept) == 0


def open_clips(hparams: dict[str, Any]) -> tuple[LabelledClips, float]:
    """Opens the clips that the YAML names, prints a summary, decides their length."""
    if hparams["dataset"] is None:
        raise ValueError(
            "--dataset PATH is needed: a folder of class folders, a CSV, JSONL or "
            "Parquet file with a column of files and one of labels, or a hub id"
        )
    clips = open_labelled(
        hparams["dataset"],
        hparams["facts"],
        hparams["target"],
        config=hparams["dataset_config"],
        cache_dir=hparams["dataset_cache"],
        **{key: hparams[key] for key in TABLE_OPTIONS},
    )
    found = describe(clips.rows, clip_seconds=hparams["clip_seconds"])
    if if_main_process():
        print(f"{hparams['dataset']}, {clips.target}:\n{found}")
        if hparams["clip_seconds"] == "auto":
            print(f"clip_seconds: {found.clip_seconds:g} s; most clips are no longer")
    return clips, float(found.clip_seconds)


def split_clips(
    clips: LabelledClips, hparams: dict[str, Any], device: str
) -> tuple[dict[str, Split], int]:
    """Splits the clips by run, for training, validation and test; plans the epochs."""

    def runs(valid_share: float) -> dict[str, Split]:
        return runs_of(
            clips.rows,
            hparams["split"],
            hparams["fold"],
            valid_share,
            hparams["test_share"],
            hparams["seed"],
        )

    epochs, share = hparams["number_of_epochs"], hparams["valid_share"]
    split = min(runs(0.0).values(), key=lambda split: len(split.train))
    few = len(split.train) < FEW_CLIPS_PER_CLASS * len(clips.labels)
    if "group" in clips.rows.column_names:
        groups = clips.rows.select(split.train)["group"]
        few = few or len(set(groups)) < FEW_GROUPS
    auto_share = FEW_VALID_SHARE if few else VALID_SHARE
    if epochs == "auto":
        run = Run(clips, split, hparams, device)
        epochs, needs_all, why = plan_epochs(run, few)
        auto_share = 0.0 if needs_all else auto_share
        if if_main_process():
            print(f"number_of_epochs: {epochs}, {why}")
    if share == "auto":
        share = auto_share
    # Without epochs to choose from, no validation clips are needed.
    splits = runs(share if epochs else 0.0)
    if if_main_process():
        print(f"split: {split_in_words(clips.rows, splits, hparams['seed'])}")
    return splits, epochs


def plan_epochs(run: Run, few: bool) -> tuple[int, bool, str]:
    """Decides how many epochs the clips of a run need, and why.

    With few clips, a probe that classifies held-out clips correctly is hard to beat.
    Where it does not, the network has to learn new features and needs every clip for
    that, so no clips are held out for validation.

    Arguments
    ---------
    run : Run
        Without validation clips.
    few : bool
        Whether it has few clips per class, or so few groups that holding one out for
        validation costs too much.

    Returns
    -------
    int, bool, str
        Epochs; whether all clips are needed for training; the reason, in words.
    """
    hparams, num_clips = run.hparams, len(run.split.train)
    num_classes = len(run.clips.labels)
    why = f"for {num_clips} clips of {num_classes} classes"
    epochs = epochs_for(num_clips, hparams["batch_size"])
    has_probe = hparams["probe_ridge"] is not None and not continues_training(hparams)
    # A probe alone would not use the teacher.
    if not few or not has_probe or hparams["teacher"] is not None:
        return epochs, False, why
    modules = build_modules(hparams, make_student(run))
    share_right = start_from_probe(run, modules).share_right
    if share_right is not None:
        why += f"; a probe classifies {share_right:.0%} of held-out clips correctly"
        if share_right < SHARE_RIGHT:
            return epochs, True, f"{why}, so every clip is used for training"
    if num_clips < FEWEST_CLIPS_PER_CLASS * num_classes:
        return 0, True, f"{why}: only a probe is fitted"
    return epochs, False, why


def refuse_another_run(
    run: Run, settings: dict[str, Any], take: Callable[..., None] = claim_folder
) -> None:
    """Refuses to continue a run of other clips or other settings in this folder."""
    hparams = run.hparams
    this = settings | {"target": run.clips.target}
    this |= split_digest(run.clips.rows, run.split)
    this["pretrained"] = identity_of_weights(hparams["pretrained"])
    this["teacher"] = identity_of_weights(hparams["teacher"])
    if hparams["teacher"] is not None and is_store(hparams["teacher"]):
        clip_ids = labels_to_train_on(run).clip_ids
        this["teacher"] = StoredTeacher(hparams["teacher"]).identity(clip_ids)
    patterns = ("save/CKPT*", "model")  # stored logits record their own teacher
    done = [found for pattern in patterns for found in run.folder.glob(pattern)]
    take(run.folder, this, started=bool(done))


def hparams_to_save(hparams_file: str) -> str | None:
    """The YAML to copy to the run folder; None if it includes other files."""
    return None if "!include" in Path(hparams_file).read_text() else hparams_file


def fine_tune(run: Run, run_opts: Any) -> Scores:
    """Trains and tests a model, and writes it with its scores."""
    hparams, split = run.hparams, run.split
    warn_of_classes_without_clips(run)
    run = run._replace(parts=build_parts(run))
    if hparams["probe_ridge"] is not None and not continues_training(hparams):
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
    run_on_main(say_what_is_kept, args=(run, main, kept))
    if kept == "start":
        go_back_to_start(run)
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
    """Chooses the weights to keep by the score ``main``: start, best or newest.

    Validation clips are often easier than later use. If epochs differ by chance alone,
    the newest has been trained the longest and at the lowest rate: it is kept if it is
    within a standard error of the best. The model from before training is kept unless
    an epoch beats it by more than a standard error.
    """
    checkpointer, valid = run.parts.checkpointer, run.split.valid
    best = checkpointer.find_checkpoint(max_key=main) if valid else None
    if best is None:
        return "newest"
    if run.hparams["keep_epoch"] == "best":
        return "best"
    start = json.loads((run.folder / START).read_text())[main]
    highest, newest = best.meta[main], checkpointer.find_checkpoint().meta[main]
    if highest <= start + standard_error(start, len(valid)):
        return "start"
    as_good = newest >= highest - standard_error(highest, len(valid))
    return "newest" if as_good else "best"


def say_what_is_kept(run: Run, main: str, kept: str) -> None:
    """Prints and records which epoch is kept, or that no epoch beat the start."""
    epochs, number = run.parts.history.epochs, run.hparams["number_of_epochs"]
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


def go_back_to_start(run: Run) -> None:
    """Undoes training, and fits the probe to the validation clips as well."""
    run.parts.student.load_state_dict(make_student(run).state_dict())
    if run.hparams["probe_ridge"] is not None and not continues_training(run.hparams):
        places = [*run.split.train, *run.split.valid]
        start_from_probe(run, run.parts.modules, places)


def make_student(run: Run) -> Student:
    """Loads the student that training starts from, with a class layer for the data."""
    hparams, labels = run.hparams, run.clips.labels
    if not continues_training(hparams):
        told = hparams["log_mel"].keywords.items()
        stated = {name: value for name, value in told if "jitter" not in name}
        try:
            return load_student(
                hparams["pretrained"],
                num_classes=len(labels),
                savedir=hparams["pretrained_folder"],
                head=hparams["head"],
                **stated,
            )
        except Unstated as error:
            how = '--log_mel "{n_mels: ..., hop_length: ...}"'
            raise ValueError(error.sentence({"front end": how})) from error
    model = read_model_folder(hparams["pretrained"])
    if model.labels.mids != labels.mids:
        raise ValueError(
            f"the model in {hparams['pretrained']} has {len(model.labels)} classes, "
            f"and the data has {len(labels)} other ones; start from a published model, "
            "or from a model of the same classes"
        )
    return model.student


def continues_training(hparams: dict[str, Any]) -> bool:
    """Whether training starts from a model folder and keeps its classes."""
    return find_model_folder(hparams["pretrained"]) is not None


def build_modules(
    hparams: dict[str, Any], student: Student
) -> dict[str, torch.nn.Module]:
    """Puts the student and its front end into modules."""
    log_mel = hparams["log_mel"](**student.front_end)
    if log_mel.sample_rate != hparams["sample_rate"]:
        raise ValueError(
            f"sample_rate={hparams['sample_rate']} Hz, but {hparams['pretrained']} "
            f"needs {log_mel.sample_rate} Hz; pass --sample_rate {log_mel.sample_rate}"
        )
    return modules_of(hparams, student, log_mel)


def build_parts(run: Run) -> Parts:
    """Builds the objects that depend on data and weights."""
    hparams, clips, epochs = run.hparams, run.clips, run.hparams["number_of_epochs"]
    student = make_student(run)
    modules = build_modules(hparams, student)
    class_weights = class_layer_start = None
    if hparams["class_weights"]:
        indices = labels_to_train_on(run).indices
        class_weights = balanced_class_weights(indices, len(clips.labels))
    lr_schedule = hparams["lr_schedule"]
    if isinstance(lr_schedule, partial):
        lr_schedule = lr_schedule(number_of_epochs=max(epochs, 1))
    has_probe = hparams["probe_ridge"] is not None and not continues_training(hparams)
    if has_probe and hparams["class_layer"] == "new" and epochs:
        class_layer_start = copy.deepcopy(student.class_layer().state_dict())
    # Without validation clips there is nothing to be patient about.
    patience = hparams["patience"] if run.split.valid else epochs + 1
    recoverables = {
        "student": student,
        "epoch_counter": EpochCounterWithStopper(epochs, patience, 0, "max"),
        "history": History(),
    }
    checkpointer = AtomicCheckpointer(str(run.folder / "save"), recoverables)
    model = trained_model(hparams, student, clips.labels, clips.target)
    describe_checkpoints(checkpointer, {"student": model})
    return Parts(
        modules=modules,
        teacher=open_teacher(run),
        loss=DistillationLoss(
            hparams["kd_weight"], hparams["kd_temperature"], clips.target, class_weights
        ),
        make_stats=(
            ClassificationStats if clips.target == "multiclass" else TaggingStats
        ),
        lr_schedule=lr_schedule,
        checkpointer=checkpointer,
        class_layer_start=class_layer_start,
        **recoverables,
    )


def open_teacher(run: Run) -> StoredTeacher | None:
    """Opens stored logits, or computes those of a teacher for the training clips."""
    source = run.hparams["teacher"]
    if source is None:
        return None
    if not is_store(source):
        return StoredTeacher(logits_of_teacher(run, source))
    teacher = StoredTeacher(source)
    seconds, short_clips = run.hparams["clip_seconds"], run.hparams["short_clips"]
    warn_of_other_clips(teacher, seconds, short_clips)
    teacher.check(labels_to_train_on(run), run.clips.labels, target=run.clips.target)
    return teacher


def logits_of_teacher(run: Run, source: str) -> LogitsStore:
    """Computes a teacher's logits of the training clips, stored in the run folder."""
    hparams, labels = run.hparams, run.clips.labels
    teacher, theirs, kind = open_teachers(
        source,
        sample_rate=hparams["sample_rate"],
        savedir=hparams["pretrained_folder"],
        options=hparams["teacher_options"],
        wanted=labels,
    )
    refuse_others(theirs, kind, labels, run.clips.target)
    path = run.folder / "teacher_logits"
    fill_store(
        path,
        str(source),
        teacher.to(run.device),
        labels,
        run.clips.rows.select(run.split.train),
        hparams["clip_seconds"],
        run.device,
        hparams["max_unreadable_share"],
        short_clips=hparams["short_clips"],
        **hparams["eval_loader"],
    )
    return LogitsStore(path)


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

    def heard() -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        for batch in read_batches(
            plain_clips(hparams, run.clips.labels, run.clips.rows, places),
            "probe",
            hparams["max_unreadable_share"],
            **hparams["eval_loader"],
        ):
            groups = [group_of.get(clip_id) or clip_id for clip_id in batch.clip_id]
            waveform = batch.waveform.to(run.device)
            yield log_mel(waveform).unsqueeze(1), batch.labels, groups

    return fit_probe(student, heard(), run.clips.target, hparams["probe_ridge"])


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
    epochs, batch_size = hparams["number_of_epochs"], hparams["batch_size"]
    steps = math.ceil(len(split.train) / batch_size / world_size())
    step_seconds = seconds_per_step(
        run.parts.modules["log_mel"],
        run.parts.student,
        batch_size,
        round(hparams["clip_seconds"] * hparams["sample_rate"]),
        run.device,
    )
    # Scoring a clip takes about a third of the time of training on it.
    scored = len(split.valid) / batch_size / 3
    minutes = epochs * (steps + scored) * step_seconds / 60
    return (
        f"Training on {len(split.train)} clips of {hparams['clip_seconds']:g} s: "
        f"{epochs} epochs of {steps} steps, at most about {max(minutes, 1):.0f} min"
    )


def draws(run: Run) -> Draws:
    """Draws the clips of an epoch; rare classes more often if the YAML says so."""
    weights = None
    if run.hparams["class_balanced"]:
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
    tested = test(run, str(brain.device)) if run.split.test else {}
    for scores in [*tested.values()][:1]:
        brain.log_test(scores)
    found = dict(tested)
    for name, scores in run.folds.items():
        found[f"{name}, by a model trained on the others"] = scores
    if cut_scores is not None:
        seconds = f"{hparams['clip_seconds']:g} s"
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
    epochs = run.parts.history.epochs
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
        if run.hparams["probe_ridge"] is not None and not continues_training(
            run.hparams
        ):
            sizes = f"a probe, fitted in closed form to {fitted} of them"
    return Provenance(
        name=Path(dataset).resolve().name,
        started_from=str(run.hparams["pretrained"]),
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
    start(main)
