"""Distils any teacher into a small student, on sound without labels.

> python recipes/distil.py hparams/distil.yaml --dataset FOLDER --teacher TEACHER

TEACHER is a published name, a file of weights, a model or run folder, an AST, or
package.module:function; several, joined by commas, are averaged.
Rerun the same command to resume an interrupted run. The model folder is
OUTPUT_FOLDER/model; ``AudioTagger.from_hparams`` loads it.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main

from efficientat_plugin.data.labelled import (
    LabelledClips,
    open_labelled,
    runs_of,
    split_in_words,
)
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.sampling import Draws
from efficientat_plugin.data.skipped import SkippedClips, TooManyUnreadable
from efficientat_plugin.data.splits import Split, split_digest, write_split
from efficientat_plugin.data.summary import describe
from efficientat_plugin.evaluation.agreement import AgreementStats
from efficientat_plugin.evaluation.metrics import Scores
from efficientat_plugin.evaluation.report import RunResult, plot_curves, write_scores
from efficientat_plugin.pretrained.card import name_of
from efficientat_plugin.pretrained.folder import Provenance, write_model_folder
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.support.console import keep_log
from efficientat_plugin.support.files import explain_write_errors
from efficientat_plugin.support.launch import (
    claim_folder,
    load_hparams,
    parse_and_join,
    settings_of,
    start,
    yaml_to_save,
)
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.tagging.whole_clips import whole_clip_stats
from efficientat_plugin.teachers.load import OpenedTeachers, open_teachers
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.stored import StoredTeacher
from efficientat_plugin.training.recipe_parts import (
    augmented_clips,
    checkpointer_of,
    modules_of,
    plain_clips,
    store_logits,
    trained_model,
)
from efficientat_plugin.training.short_runs import prepare_for_short_run


class Run(NamedTuple):
    """The data, the teacher's logits, the settings and the student of a run."""

    clips: LabelledClips
    split: Split
    teacher: StoredTeacher
    hparams: dict[str, Any]
    student: Student


class Parts(NamedTuple):
    """The objects that depend on the teacher's logits; the YAML builds the others."""

    student: Student
    modules: dict[str, torch.nn.Module]
    teacher: StoredTeacher
    make_stats: Callable[[], AgreementStats]
    checkpointer: AtomicCheckpointer


def main(argv: list[str]) -> None:
    """Computes the teacher's logits, trains the student, and writes the results."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    if run_opts.test_only:
        sys.exit("--test_only works in audioset_kd.py only; runs here end with a test")
    hparams = load_hparams(hparams_file, overrides)
    device = run_opts.device or sb.utils.distributed.infer_device()
    epochs = hparams["number_of_epochs"]
    if epochs == "auto" or epochs < 1:
        raise ValueError(f"number_of_epochs={epochs} trains nothing; give 1 or more")
    with explain_write_errors(hparams["output_folder"]):
        settings = settings_of(hparams_file, overrides, run_opts)
        run = prepare(hparams, settings, device)
        sb.create_experiment_directory(
            hparams["output_folder"], **yaml_to_save(hparams_file, overrides)
        )
        keep_log()
        distil(run, run_opts)


def prepare(hparams: dict[str, Any], settings: dict[str, Any], device: str) -> Run:
    """Reads the clips and computes the teacher's logits for all of them."""
    teacher, labels, target = open_teacher(hparams)
    if target not in (None, hparams["table"]["target"]):
        raise ValueError(
            f"the teacher {hparams['teacher']} is {target}; pass --target {target}"
        )
    clips = open_labelled(
        hparams["dataset"],
        hparams["facts"],
        labels=labels,
        cache_dir=hparams["dataset_cache"],
        **hparams["table"],
    )
    if if_main_process():
        found = describe(clips.rows, clip_seconds=hparams["clip"]["clip_seconds"])
        print(f"{hparams['dataset']}:\n{found}")
        summary = summarize_rows(clips.rows, clips.labels)
        if summary.num_labelled:
            print(f"As the teacher's classes: {summary}")
    split = split_clips(clips, hparams)
    # By content, whatever their names and paths
    settings["teacher"] = f"of weights with digest {teacher.sha256()[:8]}"
    settings["labels"] = f"{len(labels)} classes (digest {labels.sha256[:8]})"
    refuse_another_run(hparams["output_folder"], settings, clips, split)
    student = build_student(clips, hparams)
    stored = store_logits(
        hparams,
        hparams["teacher_logits"],
        hparams["teacher"],
        teacher.to(device),
        clips.labels,
        clips.rows,
        device,
    )
    split = with_logits(clips, split, stored.store)
    return Run(clips, split, stored, hparams, student)


def open_teacher(hparams: dict[str, Any]) -> OpenedTeachers:
    """Opens the teachers that the YAML names, with their classes."""
    return open_teachers(
        hparams["teacher"],
        labels=hparams["labels"],
        sample_rate=hparams["clip"]["sample_rate"],
        own_rate=hparams["teacher_sample_rate"],
        savedir=hparams["pretrained_folder"],
        options=hparams["teacher_options"],
    )


def split_clips(clips: LabelledClips, hparams: dict[str, Any]) -> Split:
    """Splits the clips for training, validation and test."""
    given = "split" in clips.rows.column_names
    runs = runs_of(
        clips.rows,
        "given" if given else "random",
        None,
        seed=hparams["seed"],
        **hparams["splitting"],
    )
    if if_main_process():
        print(f"split: {split_in_words(clips.rows, runs, hparams['seed'])}")
    (split,) = runs.values()
    return split


def refuse_another_run(
    folder: str, settings: dict[str, Any], clips: LabelledClips, split: Split
) -> None:
    """Refuses to continue a run of other clips or other settings in this folder."""
    patterns = ("save/CKPT*", "model")  # stored logits record their own teacher
    done = [found for pattern in patterns for found in Path(folder).glob(pattern)]
    this = settings | split_digest(clips.rows, split)
    claim_folder(folder, this, started=bool(done))


def with_logits(clips: LabelledClips, split: Split, store: LogitsStore) -> Split:
    """Removes from each side of the split the clips without stored logits.

    The share of unreadable clips was checked when the logits of all clips were
    computed; in a small side, a single unreadable clip may exceed the allowed share.
    """
    ids = clips.rows.select_columns(["video_id"])["video_id"][:]
    known = store.rows([str(clip_id) for clip_id in ids]) >= 0
    sides = {
        name: [row for row in rows if known[row]]
        for name, rows in split._asdict().items()
    }
    for name in ("train", "test"):
        if not sides[name] and getattr(split, name):
            raise ValueError(
                f"none of the {len(getattr(split, name))} clips to {name} on can be "
                "read; repair them, or pass another --seed"
            )
    return Split(**sides)


def distil(run: Run, run_opts: Any) -> None:
    """Trains the student from the start or its last checkpoint, and tests it."""
    hparams, split, clips = run.hparams, run.split, run.clips
    parts = build_parts(run)
    brain = hparams["brain_class"](
        modules=parts.modules,
        opt_class=hparams["opt_class"],
        hparams=hparams | parts._asdict(),
        run_opts=run_opts,
        checkpointer=parts.checkpointer,
    )
    test_set = plain_clips(hparams, clips.labels, clips.rows, split.test)
    valid = None  # without validation clips the last epoch is kept
    if split.valid:
        valid = plain_clips(hparams, clips.labels, clips.rows, split.valid)
    loader = hparams["eval_loader"]
    draws = Draws(len(split.train), hparams["clips_per_epoch"], None, hparams["seed"])
    if split.test and not parts.checkpointer.list_checkpoints():
        brain.evaluate(test_set, test_loader_kwargs=dict(loader))
        if if_main_process():
            print(f"Before: {brain.scores}")
    brain.fit(
        hparams["epoch_counter"],
        augmented_clips(hparams, clips.labels, clips.rows.select(split.train)),
        valid,
        train_loader_kwargs=hparams["train_loader"] | {"sampler": draws},
        valid_loader_kwargs=dict(loader),
    )
    best = "explained" if split.valid else None
    if split.test:
        brain.evaluate(test_set, max_key=best, test_loader_kwargs=dict(loader))
    else:
        brain.on_evaluate_start(max_key=best)
    run_on_main(finish, kwargs={"brain": brain, "run": run})


def build_student(clips: LabelledClips, hparams: dict[str, Any]) -> Student:
    """Builds a student with the teacher's classes."""
    student = hparams["student"](num_classes=len(clips.labels))
    prepare_for_short_run(student, **hparams["short_run"])
    return student


def build_parts(run: Run) -> Parts:
    """Builds the objects that depend on the teacher's logits."""
    hparams, clips = run.hparams, run.clips
    model = trained_model(hparams, run.student, clips.labels, clips.target)
    return Parts(
        run.student,
        modules_of(hparams, run.student, hparams["log_mel"]),
        run.teacher,
        partial(AgreementStats, run.teacher.store.lookup, clips.target),
        checkpointer_of(hparams, model, hparams["epoch_counter"]),
    )


def finish(brain: Any, run: Run) -> None:
    """Writes the model, its scores and curves, and prints where the model is."""
    hparams, clips, split = run.hparams, run.clips, run.split
    folder, agreement = Path(hparams["output_folder"]), brain.scores
    model = trained_model(hparams, run.student, clips.labels, clips.target)
    write_model_folder(folder / "model", model, describe_origin(run, {}))
    write_split(folder / "split.csv", split, clips.rows["video_id"])
    scores: dict[str, Any] = {}
    if split.test:
        seconds = f"{hparams['clip']['clip_seconds']:g} s"
        cut = f"the first {seconds} of {len(split.test)} clips"
        scores[f"agreement with the teacher, {cut}"] = agreement
        labelled = label_scores(run, str(brain.device))
        if labelled is not None:
            scores[f"labels, {labelled.num_clips} clips"] = labelled
        others = {} if labelled is None else {"labels": labelled}
        write_scores(folder, agreement, clips.labels, others)
    epochs = hparams["history"].epochs
    lines = [RunResult("each epoch", agreement, None, epochs, "validation")]
    if split.test:
        lines.append(RunResult("the one kept", agreement, clips="test"))
    plot_curves(folder / "curves.png", lines)
    write_model_folder(folder / "model", model, describe_origin(run, scores))
    for name, found in scores.items():
        print(f"{name}: {found}")
    if not split.test:
        print("There are no test clips, so this model itself has no score.")
    print(f"The model is in {folder / 'model'}")


def label_scores(run: Run, device: str) -> Scores | None:
    """Scores the tagger that the model folder loads; None if there are no labels."""
    rows = run.clips.rows.select(run.split.test)
    if not summarize_rows(rows, run.clips.labels).num_labelled:
        return None
    folder = Path(run.hparams["output_folder"]) / "model"
    tagger = AudioTagger.from_hparams(str(folder), run_opts={"device": device})
    skipped = SkippedClips(run.hparams["max_unreadable_share"])
    return whole_clip_stats(tagger, rows, skipped).summarize()


def describe_origin(run: Run, scores: dict[str, Any]) -> Provenance:
    """Describes the origin of the model, for its card."""
    dataset, clips, split = run.hparams["dataset"], run.clips, run.split
    sizes = f"{len(split.train)} for training, {len(split.valid)} to choose the epoch"
    return Provenance(
        name=Path(dataset).resolve().name,
        started_from=None,
        data=f"{name_of(dataset)}: {len(clips.rows)} clips ({sizes}), "
        f"taught by {name_of(run.teacher.name)}",
        data_licence=clips.rows.info.license,
        scores=scores,
    )


if __name__ == "__main__":
    start(main, refusals=(TooManyUnreadable,))
