"""Distils a small audio tagger on AudioSet, or on other data in its schema.

> python recipes/audioset_kd.py hparams/quickstart.yaml    (needs no data)
> python recipes/audioset_kd.py hparams/mn10.yaml --dataset PATH --teacher STORE
> python recipes/audioset_kd.py hparams/mn10.yaml --test_only --pretrained mn10_as

Rerun the same command to resume an interrupted run; `torchrun` runs it on several
processes.
"""

import os
import sys
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main

from efficientat_plugin.cost.complexity import measure_once
from efficientat_plugin.data.clips import Clips, ClipStream
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.digests import digest_of_clips, sounds_of
from efficientat_plugin.data.labels import (
    LabelSummary,
    audioset_labels,
    audioset_vocabulary,
    refuse_other_labels,
)
from efficientat_plugin.data.rows import load_rows, summarize_rows
from efficientat_plugin.data.sampling import Draws, class_balanced_weights
from efficientat_plugin.data.skipped import TooManyUnreadable
from efficientat_plugin.evaluation.metrics import Scores
from efficientat_plugin.evaluation.report import (
    RunResult,
    comparison_table,
    plot_curves,
    write_comparison,
    write_scores,
)
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.card import name_of
from efficientat_plugin.pretrained.description import describe, identity_of_weights
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    describe_checkpoints,
    write_model_folder,
)
from efficientat_plugin.pretrained.weights import (
    front_end_arguments,
    load_network,
    load_published_state,
)
from efficientat_plugin.students.passt import PaSST
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
from efficientat_plugin.support.run_folder import read_run, refuse_other_settings
from efficientat_plugin.teachers.stored import as_teacher, warn_of_other_clips
from efficientat_plugin.training.recipe_parts import (
    augmented_clips,
    trained_model,
)

# Settings that an evaluation of the run's own checkpoint cannot change
OF_THE_STUDENT = ("student", "peer", "log_mel", "clip_seconds", "sample_rate")
# Where the trained models are written in the run folder
FOLDERS_OF_MODELS = {"student": "model", "peer": "peer/model"}
STREAM_HEAD = 256  # clips of a stream that are checked before training
STREAM_SOUNDS = 8  # clips of a stream whose sound is hashed, too
NOTHING_NEEDED = (
    "`python recipes/audioset_kd.py hparams/quickstart.yaml` runs on an embedded "
    "sample and needs no inputs."
)


class Inputs(NamedTuple):
    """The inputs of a run, checked before anything is built or written."""

    train_rows: Any
    eval_rows: Any
    teacher: Any  # a teacher of efficientat_plugin.teachers, or None


class Run(NamedTuple):
    """One student to train; every input has been checked."""

    hparams_file: str
    overrides: dict[str, Any]
    hparams: dict[str, Any]
    inputs: Inputs
    train_set: Clips | ClipStream
    train_loader: dict[str, Any]
    summary: LabelSummary  # of the training clips; of a stream, of its first clips


def main(argv: list[str]) -> None:
    """Trains, evaluates and reports as the YAML and the overrides say."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    hparams = load_hparams(hparams_file, overrides)
    if run_opts.test_only:
        named = overrides.get("pretrained") is not None
        settings = settings_of(hparams_file, overrides, run_opts)
        evaluate_only(hparams, run_opts, named, settings)
        return
    runs = [prepare(hparams_file, overrides, hparams)]
    for others in overrides_of_others(hparams):
        own = overrides | others
        runs.append(prepare(hparams_file, own, load_hparams(hparams_file, own)))
    for run in runs:  # before anything is scored, trained or written
        claim(run, run_opts)
    teacher = teacher_itself(runs[0]) if compares(hparams) else []
    results: list[list[RunResult]] = []
    for run in runs:
        with explain_write_errors(run.hparams["output_folder"]):
            results.append(train_and_evaluate(run, run_opts))
            table = [*results[0], *teacher, *chain(*results[1:])]
            # Now, so that the first results survive if a later run fails
            run_on_main(report, (Path(hparams["output_folder"]), table))
    if if_main_process():
        print(comparison_table(table))
        folder = hparams["output_folder"]
        print(f"Curves, results per class and checkpoints are in {folder}")


def report(folder: Path, results: list[RunResult]) -> None:
    """Writes the comparison of runs, and their curves."""
    write_comparison(folder, results)
    plot_curves(folder / "curves.png", results)


def open_inputs(hparams: dict[str, Any]) -> Inputs:
    """Opens data, teacher and start weights; exits with a list of what is missing."""
    problems = []
    train_rows = eval_rows = teacher = None
    try:
        train_rows = rows_of(hparams, training=True)
        eval_rows = rows_of(hparams, training=False)
    except (OSError, ValueError) as error:
        problems.append(f"--dataset PATH: {error}")
    try:
        teacher = as_teacher(hparams["teacher"])
    except (OSError, ValueError) as error:
        problems.append(
            f"--teacher STORE: {error}; recipes/import_teacher_logits.py imports the "
            "published PaSST logits, recipes/dump_teacher_logits.py computes those of "
            "a model; null trains on labels alone"
        )
    name, folder = (
        hparams["start_from"]["pretrained"],
        hparams["start_from"]["pretrained_folder"],
    )
    try:
        if name is not None:
            load_published_state(hparams["student"], name, folder)
    except (OSError, ValueError) as error:
        problems.append(f"--pretrained NAME, PATH or null: {error}")
    refuse(problems)
    return Inputs(train_rows, eval_rows, teacher)


def refuse(problems: list[str]) -> None:
    """Exits with a list of all problems with the inputs, if there are any."""
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        sys.exit(f"Missing inputs. Pass:\n{listed}\n{NOTHING_NEEDED}")


def rows_of(hparams: dict[str, Any], training: bool) -> Any:
    """Loads the rows of a split; for training, streams and adds a transfer set."""
    data = hparams["data"]
    split = data["train_split" if training else "eval_split"]
    streaming, cache = training and data["streaming"], data["dataset_cache"]
    config = data["dataset_config"]
    rows = load_rows(hparams["dataset"], split, streaming, config, cache)
    if training and data["transfer_set"] is not None:
        more = load_rows(data["transfer_set"], "transfer", streaming, None, cache)
        rows = datasets.concatenate_datasets([rows, more])
    return rows


def prepare(
    hparams_file: str, overrides: dict[str, Any], hparams: dict[str, Any]
) -> Run:
    """Opens and checks the inputs of a run."""
    num_classes = hparams["student"].num_classes
    if num_classes != len(audioset_labels()):
        raise ValueError(
            f"num_classes={num_classes}: AudioSet has {len(audioset_labels())} classes"
        )
    inputs = open_inputs(hparams)
    hparams = hparams | {"teacher": inputs.teacher}
    warn_of_another_front_end(hparams)
    refuse_unlabelled_eval_clips(inputs.eval_rows)
    if hparams["data"]["streaming"]:
        train_set, loader, summary = streamed_training_data(hparams, inputs)
    else:
        train_set, loader, summary = training_data(hparams, inputs)
    return Run(hparams_file, overrides, hparams, inputs, train_set, loader, summary)


def claim(run: Run, run_opts: Any) -> None:
    """Claims the output folder; refuses one that holds another run."""
    hparams, summary, teacher = run.hparams, run.summary, run.inputs.teacher
    this = settings_of(run.hparams_file, run.overrides, run_opts)
    this["train"] = digest_of_clips(
        summary.clip_ids, summary.indices, sounds_of(head_of(run.train_set))
    )
    this["eval"] = digest_of_rows(run.inputs.eval_rows)
    this["pretrained"] = identity_of_weights(hparams["start_from"]["pretrained"])
    if hasattr(teacher, "identity"):
        this["teacher"] = teacher.identity(summary.clip_ids)
    folder = Path(hparams["output_folder"])
    save_folder = Path(hparams["paths"]["save_folder"])
    done = [*save_folder.glob("CKPT*"), *folder.glob("scores.json")]
    with explain_write_errors(folder):
        claim_folder(folder, this, started=bool(done), may_train_longer=True)


def head_of(train_set: Clips | ClipStream) -> Any:
    """Returns the rows whose sound is hashed: of a stream, only the first few."""
    rows = train_set.rows
    return rows if isinstance(train_set, Clips) else list(rows.take(STREAM_SOUNDS))


def digest_of_rows(rows: Any) -> str:
    """Computes a digest that tells splits apart."""
    summary = summarize_rows(rows, audioset_vocabulary())
    return digest_of_clips(summary.clip_ids, summary.indices, sounds_of(rows))


def warn_of_another_front_end(hparams: dict[str, Any]) -> None:
    """Warns if the pretrained weights were trained on another log-mel."""
    name, folder = (
        hparams["start_from"]["pretrained"],
        hparams["start_from"]["pretrained_folder"],
    )
    if name is None:
        return
    known = describe(name, folder)
    if known.entry is not None and known.entry.trained_on == "ImageNet":
        return
    trained = known.front_end or {}
    options = [
        f"--{key} {trained[key]}"
        for key in ("sample_rate", "n_mels", "hop_length")
        if key in trained and trained[key] != getattr(hparams["log_mel"], key)
    ]
    if options and if_main_process():
        print(
            f"Warning: {name} was trained on a different log-mel; to use the one it "
            f"was trained on, pass {' '.join(options)}"
        )


def train_and_evaluate(run: Run, run_opts: Any) -> list[RunResult]:
    """Trains one student, or two that teach each other; resumes a checkpoint."""
    hparams = run.hparams
    sb.create_experiment_directory(
        hparams["output_folder"], **yaml_to_save(run.hparams_file, run.overrides)
    )
    keep_log()
    models = models_of(hparams)
    describe_checkpoints(hparams["checkpointer"], models)
    brain = make_brain(hparams, run_opts, hparams["checkpointer"])
    eval_set = Clips(run.inputs.eval_rows, reader_of(hparams))
    brain.fit(
        hparams["epoch_counter"],
        run.train_set,
        eval_set,
        train_loader_kwargs=run.train_loader,
        valid_loader_kwargs=dict(hparams["eval_loader"]),
    )
    results = evaluate(brain, eval_set)
    run_on_main(write_models, (run, models, results))
    return results


def models_of(hparams: dict[str, Any]) -> dict[str, TrainedModel]:
    """Returns the trained models by the names that they have in checkpoints."""
    models = {}
    for name in FOLDERS_OF_MODELS:
        if name in hparams["modules"]:
            student = hparams[name]
            student.front_end = front_end_arguments(hparams["log_mel"])
            models[name] = trained_model(
                hparams, student, audioset_labels(), hparams["loss"].target
            )
    return models


def write_models(
    run: Run, models: dict[str, TrainedModel], results: list[RunResult]
) -> None:
    """Writes a model folder for each trained model, and prints its path."""
    hparams = run.hparams
    dataset, split = Path(str(hparams["dataset"])), hparams["data"]["eval_split"]
    data = dataset.name if dataset.exists() else str(dataset)
    for (name, model), result in zip(models.items(), results, strict=True):
        provenance = Provenance(
            name=f"{dataset.name}, {result.name}",
            started_from=hparams["start_from"]["pretrained"],
            data=f"{data}: {trained_on(run)}",
            data_licence=run.inputs.train_rows.info.license or "",
            scores={cut_clips(split, result.scores, hparams): result.scores},
        )
        folder = Path(hparams["output_folder"]) / FOLDERS_OF_MODELS[name]
        write_model_folder(folder, model, provenance)
        print(f"The model of {result.name} is in {folder}")


def trained_on(run: Run) -> str:
    """Describes the training clips and the teacher, for the model's card."""
    hparams, teacher = run.hparams, run.inputs.teacher
    data, count = hparams["data"], f"{len(run.summary.clip_ids)} clips"
    if hparams["sampling"]["labelled_only"]:
        count += " with labels"
    if data["streaming"]:
        count = "the clips"  # their number is not known
    what = f"{count} of {data['train_split']}"
    if data["transfer_set"] is not None:
        what += f" and {name_of(data['transfer_set'])}"
    if "peer" in hparams:
        return what  # the model's name includes its teacher
    if teacher is None or not hparams["loss"].kd_weight:
        return f"{what}, without a teacher"
    return f"{what}, taught by {name_of(teacher.name)}"


def cut_clips(split: str, scores: Scores, hparams: dict[str, Any]) -> str:
    """Describes the scored clips, which the published protocol cuts."""
    seconds = f"{hparams['clip']['clip_seconds']:g} s"
    return f"{split}, the first {seconds} of {scores.num_clips} clips"


def training_data(
    hparams: dict[str, Any], inputs: Inputs
) -> tuple[Clips, dict[str, Any], LabelSummary]:
    """Builds the training set, the arguments of its loader, and a label summary."""
    rows, sampling = inputs.train_rows, hparams["sampling"]
    summary = summarize_rows(rows, audioset_vocabulary())
    report_and_check("Training clips", summary, hparams)
    if sampling["labelled_only"]:
        labelled = [i for i, classes in enumerate(summary.indices) if classes]
        rows = rows.select(labelled)
        summary = summarize_rows(rows, audioset_vocabulary())
    weights = None
    if sampling["class_balanced"]:
        weights = class_balanced_weights(summary.indices, len(audioset_labels()))
    draws = Draws(len(rows), sampling["clips_per_epoch"], weights, hparams["seed"])
    per_process = len(draws) // world_size()
    batch_size = hparams["train_loader"]["batch_size"]
    if per_process < batch_size:
        raise ValueError(
            f"batch_size={batch_size} is more than an epoch's "
            f"{per_process} clips for each process; lower it"
        )
    train_set = augmented_clips(hparams, audioset_vocabulary(), rows)
    return train_set, hparams["train_loader"] | {"sampler": draws}, summary


def streamed_training_data(
    hparams: dict[str, Any], inputs: Inputs
) -> tuple[ClipStream, dict[str, Any], LabelSummary]:
    """As ``training_data``, for a stream, of which only the first rows are checked."""
    settings = hparams["sampling"] | {"waveform_mix": hparams["waveform_mix"]}
    settings |= comparison_of(hparams)
    needs_rows = ["class_balanced", "labelled_only", "waveform_mix"]
    needs_rows.append("compare_without_teacher")
    asked = [key for key in needs_rows if settings[key]]
    if asked:
        options = " ".join(
            f"--{key} {'null' if key == 'waveform_mix' else False}" for key in asked
        )
        raise ValueError(
            f"{' and '.join(asked)} need rows at random access, which a stream does "
            f"not have; pass {options}, or --streaming False"
        )
    first = inputs.train_rows.take(STREAM_HEAD).select_columns(["video_id", "labels"])
    head = datasets.Dataset.from_list(list(first))
    summary = summarize_rows(head, audioset_vocabulary())
    report_and_check(f"The stream's first {len(head)} clips", summary, hparams)
    stream = ClipStream(
        inputs.train_rows,
        reader_of(hparams),
        hparams["waveform_augment"],
        hparams["data"]["shuffle_buffer"],
        hparams["sampling"]["clips_per_epoch"],
        hparams["seed"],
        rank=int(os.environ.get("RANK", 0)),
        world_size=world_size(),
    )
    return stream, dict(hparams["train_loader"]), summary


def report_and_check(what: str, summary: LabelSummary, hparams: dict[str, Any]) -> None:
    """Prints a summary of the data; refuses data that a student cannot learn from.

    Refused are labels of other classes, data without labels or teacher, and logits of
    other classes, of other clips, or of too few clips.
    """
    if if_main_process():
        print(f"{what}: {summary}")
    refuse_other_labels(what, summary, audioset_vocabulary())
    has_teacher = hparams["teacher"] is not None or "peer" in hparams
    if not (summary.num_labelled or (has_teacher and hparams["loss"].kd_weight)):
        why = (
            "kd_weight=0 ignores the teacher" if has_teacher else "there is no teacher"
        )
        raise ValueError(
            f"{what} have no labels, and {why}, so there is nothing to learn from; "
            "pass --teacher STORE and a --kd_weight above 0, or data with labels"
        )
    if hparams["teacher"] is not None:
        clip = hparams["clip"]
        warn_of_other_clips(
            hparams["teacher"], clip["clip_seconds"], clip["short_clips"]
        )
        minimum = hparams["min_teacher_coverage"]
        verdict = hparams["teacher"].check(summary, audioset_labels(), minimum)
        if if_main_process():
            print(f"Teacher: {verdict}")


def refuse_unlabelled_eval_clips(rows: Any) -> None:
    """Prints a summary of the evaluation clips; refuses clips without labels."""
    summary = summarize_rows(rows, audioset_vocabulary())
    if if_main_process():
        print(f"Evaluation clips: {summary}")
    refuse_other_labels("Evaluation clips", summary, audioset_vocabulary())
    if not summary.num_labelled:
        raise ValueError(
            "Evaluation clips have no labels, so nothing can be scored on them; pass "
            "--eval_split with a split that has labels"
        )


def reader_of(hparams: dict[str, Any]) -> ClipReader:
    """Builds the reader that turns AudioSet's rows into clips."""
    return ClipReader(audioset_vocabulary(), **hparams["clip"])


def make_brain(hparams: dict[str, Any], run_opts: Any, checkpointer: Any) -> Any:
    """Builds the Brain that the YAML names."""
    return hparams["brain_class"](
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )


def evaluate(
    brain: Any, eval_set: Clips, name: str | None = None, alone: bool = False
) -> list[RunResult]:
    """Scores each trained model, and writes its scores and results per class.

    ``name`` names the model if its teacher is not known; ``alone`` leaves out the
    peer, for a student that was not trained together with it.
    """
    # The last checkpoint, not the best one on these same clips
    brain.evaluate(eval_set, test_loader_kwargs=dict(brain.hparams.eval_loader))
    trained = brain.trained()[: 1 if alone else None]
    if name is not None and len(trained) == 1:
        trained = [trained[0]._replace(name=name)]
    if if_main_process():
        folder, labels = Path(brain.hparams.output_folder), audioset_labels()
        by_name = {one.name: one.scores for one in trained if len(trained) > 1}
        write_scores(folder, trained[0].scores, labels, by_name)
        for one in trained[1:]:
            write_scores(folder / one.folder, one.scores, labels)
        for one in trained:
            print(f"{one.name}: {one.scores}")
    log_mel = brain.hparams.log_mel
    num_frames = log_mel.num_frames(eval_set.reader.num_samples)
    return [
        RunResult(
            one.name,
            one.scores,
            measure_once(one.student, log_mel.n_mels, num_frames),
            one.epochs,
        )
        for one in trained
    ]


def evaluate_only(
    hparams: dict[str, Any], run_opts: Any, named: bool, settings: dict[str, Any]
) -> None:
    """Scores a published or local model, or else this run's last checkpoint."""
    checkpointer, problems = None, []
    name, folder = hparams["start_from"]["pretrained"], hparams["output_folder"]
    if named:
        try:
            hparams = hparams | parts_of_named(hparams, name)
        except (ImportError, OSError, ValueError) as error:
            problems.append(f"--pretrained NAME or PATH: {error}")
        # Do not overwrite the scores of a run that trained in this folder.
        folder += f"/evaluated/{Path(name).stem}"
    else:
        checkpointer = hparams["checkpointer"]
        name = hparams["paths"]["save_folder"]
        if not checkpointer.list_checkpoints():
            sys.exit(
                f"There is no checkpoint in {name} to evaluate; train first, or pass "
                "--pretrained with a published name or a path"
            )
    try:
        eval_rows = rows_of(hparams, training=False)
        refuse_unlabelled_eval_clips(eval_rows)
    except (OSError, ValueError) as error:
        problems.append(f"--dataset PATH: {error}")
    refuse(problems)
    if not named:
        folder = place_of_evaluation(hparams, settings, eval_rows)
    hparams = hparams | {"teacher": None, "output_folder": folder}
    Path(folder).mkdir(parents=True, exist_ok=True)
    brain = make_brain(hparams, run_opts, checkpointer)
    eval_set = Clips(eval_rows, reader_of(hparams))
    evaluate(brain, eval_set, str(name), alone=named)


def parts_of_named(hparams: dict[str, Any], name: str) -> dict[str, Any]:
    """Loads a published or local model in the place of the YAML's student."""
    folder = hparams["start_from"]["pretrained_folder"]
    stated: dict[str, Any] = {}
    if not tells_front_end(name):
        # For a file without a description, the YAML's log-mel is used, and for a
        # transformer the YAML's strides and sizes.
        stated = front_end_arguments(hparams["log_mel"])
        if type(hparams["student"]) is PaSST:
            stated = hparams["student"].options | stated
    student = load_network(name, savedir=folder, **stated)
    if student.num_classes != len(audioset_labels()):
        raise ValueError(
            f"{name} has {student.num_classes} classes, AudioSet "
            f"{len(audioset_labels())}; recipes/audioset_kd.py only evaluates AudioSet "
            "taggers"
        )
    found = {"student": student, "log_mel": LogMel(**student.front_end)}
    return found | {"modules": hparams["modules"] | found}


def tells_front_end(name: str) -> bool:
    """Whether the front end is known from the name or from a file next to it."""
    return not Path(name).exists() or describe(name).front_end is not None


def place_of_evaluation(
    hparams: dict[str, Any], settings: dict[str, Any], eval_rows: Any
) -> str:
    """Returns the folder for the scores; refuses a front end not used in training."""
    folder = hparams["output_folder"]
    trained = read_run(folder)
    if trained is None:
        return folder
    refuse_other_settings(folder, settings, OF_THE_STUDENT)
    if trained.get("eval") != digest_of_rows(eval_rows):
        # Do not overwrite the scores of the run's own evaluation clips.
        name = f"{Path(str(hparams['dataset'])).name}-{hparams['data']['eval_split']}"
        return f"{folder}/evaluated/{name}"
    return folder


def teacher_itself(run: Run) -> list[RunResult]:
    """Scores the teacher on the evaluation clips, if it has logits for them."""
    summary = summarize_rows(run.inputs.eval_rows, audioset_vocabulary())
    eval_set = Clips(run.inputs.eval_rows, reader_of(run.hparams))
    share = run.hparams["max_unreadable_share"]
    loader_options = run.hparams["eval_loader"] | {"max_unreadable_share": share}
    scores = run.inputs.teacher.scores(eval_set, summary, loader_options)
    return [] if scores is None else [RunResult("teacher", scores)]


def comparison_of(hparams: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a comparison; not every YAML has them."""
    return hparams.get("comparison", {"compare_without_teacher": False, "num_seeds": 1})


def compares(hparams: dict[str, Any]) -> bool:
    """Whether students without a teacher are trained, too."""
    compared = comparison_of(hparams)["compare_without_teacher"]
    return compared and hparams["teacher"] is not None


def overrides_of_others(hparams: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns overrides for the students that are trained after the first one.

    They have other seeds, or no teacher: those are trained on the labelled clips only,
    for as many steps.
    """
    folder, first = hparams["output_folder"], hparams["seed"]
    others: list[dict[str, Any]] = []
    for seed in range(first, first + comparison_of(hparams)["num_seeds"]):
        own = {"seed": seed, "output_folder": folder}
        if seed != first:
            own["output_folder"] += f"/seed_{seed}"
            others.append(own)
        if compares(hparams):
            place = f"{own['output_folder']}/without_teacher"
            alone = {"teacher": None, "labelled_only": True, "output_folder": place}
            others.append(own | alone)
    return others


if __name__ == "__main__":
    start(main, refusals=(TooManyUnreadable,))
