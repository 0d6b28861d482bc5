"""Distils a small audio tagger on AudioSet, or on anything in its schema.

> python recipes/audioset_kd.py hparams/quickstart.yaml    (needs no data)
> python recipes/audioset_kd.py hparams/mn10.yaml --dataset PATH --teacher STORE
> python recipes/audioset_kd.py hparams/mn10.yaml --test_only --pretrained mn10_as

Interrupted, the same command goes on where it stopped; `torchrun` runs it on several
processes.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from datasets import concatenate_datasets
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from speechbrain.utils.distributed import ddp_init_group, if_main_process

from efficientat_plugin.complexity import measure
from efficientat_plugin.data.clips import Clips, ClipStream
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.rows import load_rows, summarize_rows
from efficientat_plugin.data.sampling import Draws, class_balanced_weights
from efficientat_plugin.data.targets import LabelSummary, audioset_labels
from efficientat_plugin.features import LogMel
from efficientat_plugin.memory import keep_freed_memory
from efficientat_plugin.metrics import TaggingStats
from efficientat_plugin.report import (
    RunResult,
    comparison_table,
    plot_curves,
    write_comparison,
    write_scores,
)
from efficientat_plugin.students.published import PUBLISHED
from efficientat_plugin.students.weights import load_published_state, load_student
from efficientat_plugin.teachers.store import LogitsStore
from efficientat_plugin.teachers.verify import verify

NOTHING_NEEDED = (
    "`python recipes/audioset_kd.py hparams/quickstart.yaml` runs on an embedded "
    "sample and needs nothing."
)


class Inputs(NamedTuple):
    """What a run reads: checked before anything is built or written."""

    train_rows: Any
    eval_rows: Any
    teacher_store: LogitsStore | None


def main(argv: list[str]) -> None:
    """Trains, evaluates and reports what the YAML and the overrides say."""
    hparams_file, run_opts, overrides_text = sb.parse_arguments(argv)
    run_opts = on_available_hardware(run_opts)
    ddp_init_group(run_opts)
    overrides = YAML(typ="safe").load(overrides_text) or {}
    hparams = load_hparams(hparams_file, overrides)
    if hparams["keep_freed_memory"]:
        keep_freed_memory()
    if run_opts.test_only:
        evaluate_only(hparams, run_opts, named=overrides.get("pretrained") is not None)
        return
    inputs = open_inputs(hparams)
    results = [distil(hparams_file, overrides, hparams, inputs, run_opts)]
    if hparams["compare_without_teacher"] and inputs.teacher_store is not None:
        results += teacher_itself(inputs)
        results.append(without_teacher(hparams_file, overrides, hparams, run_opts))
    if if_main_process():
        folder = hparams["output_folder"]
        write_comparison(folder, results)
        plot_curves(Path(folder) / "curves.png", results)
        print(comparison_table(results))
        print(f"Curves, results per class and checkpoints are in {folder}")


def on_available_hardware(run_opts: Any) -> Any:
    """Processes of a `torchrun` without GPUs talk by gloo, unless told otherwise."""
    told = run_opts.overridden_args
    on_gpu = torch.cuda.is_available() and run_opts.device != "cpu"
    if on_gpu or "distributed_backend" in told:
        return run_opts
    return dataclasses.replace(
        run_opts,
        distributed_backend="gloo",
        overridden_args=told | {"distributed_backend"},
    )


def load_hparams(hparams_file: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Builds the objects of the YAML."""
    with open(hparams_file, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides)


def open_inputs(hparams: dict[str, Any]) -> Inputs:
    """Opens data, teacher and start weights, or says in one message what to pass."""
    problems = []
    train_rows = eval_rows = store = None
    try:
        train_rows = rows_of(hparams, hparams["train_split"], training=True)
        eval_rows = rows_of(hparams, hparams["eval_split"], training=False)
    except FileNotFoundError as error:
        problems.append(f"--dataset PATH: {error}")
    try:
        store = LogitsStore.open_or_none(hparams["teacher"])
    except FileNotFoundError as error:
        problems.append(
            f"--teacher STORE: {error}; recipes/import_teacher_logits.py makes one of "
            "the published PaSST logits, recipes/dump_teacher_logits.py of a model; "
            "null trains on labels alone"
        )
    try:
        if hparams["pretrained"] is not None:
            load_published_state(
                hparams["student"], hparams["pretrained"], hparams["pretrained_folder"]
            )
    except (OSError, ValueError) as error:
        problems.append(f"--pretrained NAME, PATH or null: {error}")
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        sys.exit(f"This run needs what is not there. Pass:\n{listed}\n{NOTHING_NEEDED}")
    return Inputs(train_rows, eval_rows, store)


def rows_of(hparams: dict[str, Any], split: str, training: bool) -> Any:
    """Rows of a split; for training streamed, and with more, where the YAML says so."""
    streaming, cache = training and hparams["streaming"], hparams["dataset_cache"]
    config = hparams["dataset_config"]
    rows = load_rows(hparams["dataset"], split, streaming, config, cache)
    if training and hparams["transfer_set"] is not None:
        more = load_rows(hparams["transfer_set"], "transfer", streaming, None, cache)
        rows = concatenate_datasets([rows, more])
    return rows


def distil(
    hparams_file: str,
    overrides: dict[str, Any],
    hparams: dict[str, Any],
    inputs: Inputs,
    run_opts: Any,
) -> RunResult:
    """One training run, from its last checkpoint where there is one."""
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    hparams["teacher_store"] = inputs.teacher_store
    train_set, train_loader = training_data(hparams, inputs)
    brain = make_brain(hparams, run_opts, hparams["checkpointer"])
    eval_set = Clips(inputs.eval_rows, reader(hparams))
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        eval_set,
        train_loader_kwargs=train_loader,
        valid_loader_kwargs=dict(hparams["eval_loader"]),
    )
    teacher = "without teacher" if inputs.teacher_store is None else "with teacher"
    return evaluate(brain, eval_set, f"student {teacher}")


def training_data(
    hparams: dict[str, Any], inputs: Inputs
) -> tuple[Clips | ClipStream, dict[str, Any]]:
    """The training set and what its loader is made with."""
    loader = dict(hparams["train_loader"])
    if hparams["streaming"]:
        stream = ClipStream(
            inputs.train_rows,
            reader(hparams),
            hparams["waveform_augment"],
            hparams["shuffle_buffer"],
            hparams["clips_per_epoch"],
            hparams["seed"],
            rank=int(os.environ.get("RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
        )
        return stream, loader
    rows = inputs.train_rows
    summary = summarize_rows(rows, audioset_labels())
    if if_main_process():
        print(f"Training data: {summary}")
        check_teacher(hparams, summary)
    if hparams["labelled_only"]:
        labelled = [i for i, classes in enumerate(summary.indices) if classes]
        rows = rows.select(labelled)
        summary = summarize_rows(rows, audioset_labels())
    weights = None
    if hparams["class_balanced"]:
        weights = class_balanced_weights(summary.indices, len(audioset_labels()))
    draws = Draws(len(rows), hparams["clips_per_epoch"], weights, hparams["seed"])
    per_process = len(draws) // int(os.environ.get("WORLD_SIZE", 1))
    if per_process < hparams["batch_size"]:
        sys.exit(
            f"batch_size={hparams['batch_size']} is more than an epoch's "
            f"{per_process} clips for each process; lower it"
        )
    train_set = Clips(
        rows,
        reader(hparams),
        hparams["waveform_augment"],
        hparams["waveform_mix"],
        hparams["seed"],
        replace_unreadable=True,
    )
    return train_set, loader | {"sampler": draws}


def check_teacher(hparams: dict[str, Any], summary: LabelSummary) -> None:
    """Refuses logits of other classes, of other clips, or of too few."""
    if hparams["teacher_store"] is None:
        return
    report = verify(
        hparams["teacher_store"],
        zip(summary.clip_ids, summary.indices, strict=True),
        labels_sha256=audioset_labels().sha256,
        minimum_coverage=hparams["min_teacher_coverage"],
    )
    print(f"Teacher: {report}")
    report.raise_if_bad()


def reader(hparams: dict[str, Any]) -> ClipReader:
    """Makes clips of rows."""
    return ClipReader(
        audioset_labels(), hparams["clip_seconds"], hparams["sample_rate"]
    )


def make_brain(hparams: dict[str, Any], run_opts: Any, checkpointer: Any) -> Any:
    """The Brain that the YAML names."""
    return hparams["brain_class"](
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )


def evaluate(brain: Any, eval_set: Clips, name: str) -> RunResult:
    """Scores the student, and writes scores and results per class."""
    # The last checkpoint, not the one that did best on these very clips.
    brain.evaluate(eval_set, test_loader_kwargs=dict(brain.hparams.eval_loader))
    if if_main_process():
        write_scores(brain.hparams.output_folder, brain.scores, audioset_labels())
        print(f"{name}: {brain.scores}")
    num_samples = round(brain.hparams.clip_seconds * brain.hparams.sample_rate)
    log_mel = brain.hparams.log_mel
    num_frames = log_mel.num_frames(num_samples)
    return RunResult(
        name,
        brain.scores,
        measure(brain.hparams.student, log_mel.n_mels, num_frames, rounds=100),
        brain.hparams.history.epochs,
    )


def evaluate_only(hparams: dict[str, Any], run_opts: Any, named: bool) -> None:
    """Scores a named or local checkpoint, or else the last of this run's own."""
    checkpointer = None
    name = hparams["pretrained"]
    if named:
        student = load_student(name, savedir=hparams["pretrained_folder"])
        hparams["student"] = hparams["modules"]["student"] = student
        # Width and front end go with what was published, whatever the YAML says; a
        # file of one's own does not tell its front end, but the YAML does.
        files = {entry.file for entry in PUBLISHED.values()}
        if name in PUBLISHED or Path(name).name in files:
            hparams["log_mel"] = LogMel(**student.front_end)
            hparams["modules"]["log_mel"] = hparams["log_mel"]
        # Not over the scores of a run that trained in this folder.
        hparams["output_folder"] += f"/evaluated/{Path(name).stem}"
    else:
        checkpointer = hparams["checkpointer"]
        name = hparams["save_folder"]
        if not checkpointer.list_checkpoints():
            sys.exit(
                f"There is no checkpoint in {name} to evaluate; train first, or pass "
                "--pretrained with a published name or a path"
            )
    try:
        eval_rows = rows_of(hparams, hparams["eval_split"], training=False)
    except FileNotFoundError as error:
        sys.exit(f"--dataset PATH is needed: {error}")
    hparams["teacher_store"] = None
    Path(hparams["output_folder"]).mkdir(parents=True, exist_ok=True)
    brain = make_brain(hparams, run_opts, checkpointer)
    evaluate(brain, Clips(eval_rows, reader(hparams)), str(name))


def teacher_itself(inputs: Inputs) -> list[RunResult]:
    """How well the stored logits tag the evaluation clips, if they are of any."""
    summary = summarize_rows(inputs.eval_rows, audioset_labels())
    target = inputs.teacher_store.lookup(summary.clip_ids)
    known = target.known.nonzero()[:, 0].tolist()
    known = [row for row in known if summary.indices[row]]
    if not known:
        return []
    labels = [audioset_labels().multi_hot(summary.indices[row]) for row in known]
    stats = TaggingStats()
    ids = [summary.clip_ids[row] for row in known]
    stats.append(ids, target.logits[known], torch.stack(labels))
    return [RunResult("teacher", stats.summarize())]


def without_teacher(
    hparams_file: str, overrides: dict[str, Any], hparams: dict[str, Any], run_opts: Any
) -> RunResult:
    """The same run on the labelled clips alone: as many steps, as large batches."""
    alone = overrides | {
        "teacher": None,
        "labelled_only": True,
        "output_folder": f"{hparams['output_folder']}/without_teacher",
    }
    baseline = load_hparams(hparams_file, alone)
    return distil(hparams_file, alone, baseline, open_inputs(baseline), run_opts)


if __name__ == "__main__":
    main(sys.argv[1:])
