"""Fine-tunes a published tagger on labelled sounds: one's own, ESC-50, FSD50K.

> python recipes/finetune.py hparams/finetune.yaml --dataset PATH
> python recipes/finetune.py hparams/esc50.yaml --dataset ashraq/esc50 --fold 3

Interrupted, the same command goes on where it stopped. What it leaves in
OUTPUT_FOLDER/model is a folder for ``AudioTagger.from_hparams``.
"""

import hashlib
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_barrier, if_main_process, run_on_main
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from speechbrain.utils.train_logger import FileTrainLogger
from tqdm import tqdm

from efficientat_plugin.brain import History
from efficientat_plugin.checkpoints import AtomicCheckpointer
from efficientat_plugin.contracts import ClipBatch, Skipped
from efficientat_plugin.data.clips import Clips, collate
from efficientat_plugin.data.decoding import ClipReader, UnreadableClip
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.sampling import Draws, class_balanced_weights
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.data.splits import (
    Split,
    given_split,
    split_by_fold,
    split_rows,
)
from efficientat_plugin.data.summary import describe
from efficientat_plugin.data.tables import label_table, read_table
from efficientat_plugin.data.targets import LabelTable
from efficientat_plugin.inference import AudioTagger
from efficientat_plugin.launch import load_hparams, parse_and_join
from efficientat_plugin.losses import DistillationLoss
from efficientat_plugin.metrics import (
    ClassificationScores,
    ClassificationStats,
    Scores,
    TaggingStats,
)
from efficientat_plugin.model_folder import (
    HYPERPARAMS,
    Provenance,
    TrainedModel,
    read_model_folder,
    write_model_folder,
)
from efficientat_plugin.probe import fit_probe
from efficientat_plugin.report import (
    RunResult,
    plot_confusion,
    plot_curves,
    write_scores,
)
from efficientat_plugin.students.student import Student
from efficientat_plugin.students.weights import FRONT_END, load_student
from efficientat_plugin.teachers.store import LogitsStore
from efficientat_plugin.teachers.verify import verify
from efficientat_plugin.teachers.writer import StoreWriter

TABLE_KEYS = ("form", "audio_column", "label_column", "group_column")
TABLE_KEYS += ("separator", "audio_folder")
SPLITS = ("auto", "random", "fold", "given")


class Table(NamedTuple):
    """The data of all runs."""

    rows: datasets.Dataset
    labels: LabelTable
    target: str  # "multilabel" or "multiclass"


def main(argv: list[str]) -> None:
    """Reads, splits, trains, tests and writes what the YAML and the overrides say."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    if run_opts.test_only:
        sys.exit("--test_only is audioset_kd.py's; every run here ends with a test")
    hparams = load_hparams(hparams_file, overrides)
    parent = Path(hparams["output_folder"])
    try:
        table = open_table(hparams)
        splits = split_table(table, hparams)
    except (FileNotFoundError, PermissionError, ValueError) as error:
        sys.exit(str(error))
    scores = {}
    for name, split in splits.items():
        # Anew for each, so that a run of several is several runs.
        hparams = load_hparams(hparams_file, overrides)
        if name.startswith("fold"):
            hparams["output_folder"] += f"/{name}"
        try:
            refuse_another_run(table, split, hparams)
            sb.create_experiment_directory(
                hparams["output_folder"], hparams_to_save(hparams_file), overrides
            )
            scores[name] = fine_tune(table, split, hparams, run_opts)
        except (OSError, ValueError) as error:
            sys.exit(str(error))
    if len(scores) > 1 and if_main_process():
        (parent / "folds.txt").write_text(spread(scores) + "\n")
        print(spread(scores))


def refuse_another_run(table: Table, split: Split, hparams: dict[str, Any]) -> None:
    """A folder is of one run: other clips or another start would go on with its own."""
    ids = table.rows.select_columns(["video_id"])["video_id"][:]
    this = {
        "dataset": str(hparams["dataset"]),
        "pretrained": str(hparams["pretrained"]),
        "probe_ridge": hparams["probe_ridge"],
        "number_of_epochs": hparams["number_of_epochs"],
    }
    for side, rows in split._asdict().items():
        names = "\n".join(ids[row] for row in rows)
        this[side] = hashlib.sha256(names.encode()).hexdigest()[:16]
    path = Path(hparams["output_folder"]) / "run.json"
    # One that came to nothing, for a wrong name or a full disk, binds nobody.
    came_to = [*path.parent.glob("save/CKPT*"), *path.parent.glob("model")]
    if path.is_file() and came_to:
        found = json.loads(path.read_text())
        other = [key for key in this if this[key] != found.get(key)]
        if other:
            raise ValueError(
                f"{path.parent} holds a run with another {', '.join(other)}; name "
                "another --output_folder, or remove that one"
            )
    elif if_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(this, indent=1))
        os.replace(partial, path)


def hparams_to_save(hparams_file: str) -> str | None:
    """The YAML, for the folder of the run; one that includes others stays behind."""
    return None if "!include" in Path(hparams_file).read_text() else hparams_file


def open_table(hparams: dict[str, Any]) -> Table:
    """The rows that the YAML names, and what was found in them."""
    if hparams["dataset"] is None:
        raise ValueError(
            "--dataset PATH is needed: a folder of class folders, a CSV, JSONL or "
            "Parquet with a column of files and one of labels, or a hub id"
        )
    given = {key: hparams[key] for key in TABLE_KEYS}
    given = {key: value for key, value in given.items() if value not in (None, "auto")}
    facts = hparams["facts"] | given
    rows = read_table(
        hparams["dataset"],
        config=hparams["dataset_config"],
        cache_dir=hparams["dataset_cache"],
        **facts,
    )
    labels = label_table(rows, facts.get("classes"))
    target = hparams["target"]
    if target == "auto":
        one_each = all(len(set(mids)) == 1 for mids in rows["labels"] if mids)
        target = "multiclass" if one_each else "multilabel"
    if if_main_process():
        print(f"{hparams['dataset']}, {target}:\n{describe(rows)}")
    return Table(rows, labels, target)


def split_table(table: Table, hparams: dict[str, Any]) -> dict[str, Split]:
    """Which clips to train, choose and test on, by name of the run."""
    kind, columns = hparams["split"], table.rows.column_names
    valid_share, seed = hparams["valid_share"], hparams["seed"]
    if hparams["number_of_epochs"] == 0:
        valid_share = 0.0  # there is nothing to choose
    if kind not in SPLITS:
        raise ValueError(f"split={kind!r}; it is one of {SPLITS}")
    if kind == "auto":
        by_column = {"given": "split", "fold": "fold"}
        kinds = [kind for kind, column in by_column.items() if column in columns]
        kind = kinds[0] if kinds else "random"
    if kind == "random":
        # Test clips first, so that they are the same for any share to choose on.
        tests = {"random": split_rows(table.rows, 0.0, hparams["test_share"], seed)}
    elif kind == "given":
        tests = {"given": given_split(table.rows)}
    elif "fold" not in columns:
        raise ValueError(
            f"split=fold needs a column of folds; found were {', '.join(columns)}"
        )
    else:
        folds = [hparams["fold"]]
        if hparams["fold"] is None:
            folds = sorted({str(fold) for fold in table.rows["fold"] if fold})
        tests = {f"fold{fold}": split_by_fold(table.rows, fold) for fold in folds}
    splits = {}
    for name, split in tests.items():
        if not split.valid:
            split = with_validation(table.rows, split, valid_share, seed)
        splits[name] = split
        for side in ("train", "test") + (("valid",) if split.valid else ()):
            labels = table.rows.select(getattr(split, side))["labels"]
            if not any(labels):
                raise ValueError(
                    f"no clip to {side} on ({name}) has a label; use another split, "
                    "or other shares"
                )
    return splits


def with_validation(
    rows: datasets.Dataset, split: Split, valid_share: float, seed: int
) -> Split:
    """Sets some of the training clips aside, to choose the epoch on."""
    if valid_share == 0:
        return split
    inner = split_rows(rows.select(split.train), valid_share, 0.0, seed)
    train = [split.train[row] for row in inner.train]
    return split._replace(train=train, valid=[split.train[row] for row in inner.valid])


def fine_tune(
    table: Table, split: Split, hparams: dict[str, Any], run_opts: Any
) -> Scores:
    """One run: trains, tests, and writes the model and what is to be said of it."""
    student = make_student(table, hparams)
    add_parts(table, split, student, hparams)
    device = run_opts.device or sb.utils.distributed.infer_device()
    hparams["teacher_store"] = open_teacher(table, split, hparams, device)
    judged = "judged" in table.rows.column_names
    if hparams["probe_ridge"] is not None and judged:
        raise ValueError(
            "classes of these clips were judged one by one, which a probe does not "
            "heed; pass --probe_ridge null and --number_of_epochs 80"
        )
    if hparams["probe_ridge"] is not None and not goes_on(hparams):
        start_from_probe(table, split, hparams, device)
    brain = hparams["brain_class"](
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    # Without validation clips the last epoch is kept; training clips are scored then.
    choosing = split.valid or split.train
    starts = not hparams["checkpointer"].list_checkpoints()
    if split.valid and starts and hparams["number_of_epochs"]:
        # What training begins with is kept, if no epoch does better.
        brain.evaluate(
            clips(table, split.valid, hparams),
            test_loader_kwargs=dict(hparams["eval_loader"]),
        )
        brain.start_scores = brain.scores
    brain.fit(
        hparams["epoch_counter"],
        training_clips(table, split.train, hparams),
        clips(table, choosing, hparams),
        train_loader_kwargs=hparams["train_loader"]
        | {"sampler": training_draws(table, split.train, hparams)},
        valid_loader_kwargs=dict(hparams["eval_loader"]),
    )
    best = "accuracy" if table.target == "multiclass" else "mAP"
    brain.evaluate(
        clips(table, split.test, hparams),
        max_key=best if split.valid else None,
        test_loader_kwargs=dict(hparams["eval_loader"]),
    )
    run_on_main(
        finish,
        kwargs={"brain": brain, "table": table, "split": split, "hparams": hparams},
    )
    return brain.scores


def make_student(table: Table, hparams: dict[str, Any]) -> Student:
    """The student that training begins with, its class layer of as many classes."""
    source = hparams["pretrained"]
    if not goes_on(hparams):
        return load_student(
            source,
            num_classes=len(table.labels),
            savedir=hparams["pretrained_folder"],
            head=hparams["head"],
        )
    model = read_model_folder(source)
    if model.labels.mids != table.labels.mids:
        raise ValueError(
            f"the model in {source} has {len(model.labels)} classes, and the data "
            f"{len(table.labels)} others; start from a published name, or from a model "
            "of the same classes"
        )
    return model.student


def goes_on(hparams: dict[str, Any]) -> bool:
    """Whether training starts from a model folder, with its classes."""
    return (Path(hparams["pretrained"]) / HYPERPARAMS).is_file()


def add_parts(
    table: Table, split: Split, student: Student, hparams: dict[str, Any]
) -> None:
    """What follows from data and weights, beside what the YAML has built."""
    folder = Path(hparams["output_folder"])
    log_mel = hparams["log_mel"](**student.front_end)
    if log_mel.sample_rate != hparams["sample_rate"]:
        raise ValueError(
            f"sample_rate={hparams['sample_rate']} Hz, but {hparams['pretrained']} "
            f"hears {log_mel.sample_rate} Hz; pass --sample_rate {log_mel.sample_rate}"
        )
    # All of it, so that the model folder hears what training heard.
    student.front_end = {name: getattr(log_mel, name) for name in FRONT_END}
    multiclass = table.target == "multiclass"
    hparams["student"] = student
    hparams["modules"] = {
        "log_mel": log_mel,
        "spec_mask": hparams["spec_mask"],
        "student": student,
    }
    hparams["loss"] = DistillationLoss(
        hparams["kd_weight"], hparams["kd_temperature"], table.target
    )
    hparams["make_stats"] = ClassificationStats if multiclass else TaggingStats
    hparams["history"] = History()
    hparams["train_logger"] = FileTrainLogger(str(folder / "train_log.txt"), 4)
    hparams["epoch_counter"] = EpochCounterWithStopper(
        hparams["number_of_epochs"],
        # Without validation clips there is nothing to be patient about.
        hparams["patience"] if split.valid else hparams["number_of_epochs"] + 1,
        0,
        "max",
    )
    recoverables = {
        "student": student,
        "epoch_counter": hparams["epoch_counter"],
        "history": hparams["history"],
    }
    hparams["checkpointer"] = AtomicCheckpointer(str(folder / "save"), recoverables)


def start_from_probe(
    table: Table, split: Split, hparams: dict[str, Any], device: str
) -> None:
    """Gives the class layer what can be said of the training clips in closed form."""
    train_rows = table.rows.select(split.train)
    grouped = "group" in table.rows.column_names
    by_id = dict(
        zip(train_rows["video_id"], train_rows["group"], strict=True) if grouped else ()
    )
    student = hparams["student"].eval().to(device)
    log_mel = hparams["modules"]["log_mel"].eval().to(device)

    def heard() -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        for batch in batches(table, split.train, hparams, "probe"):
            groups = [by_id.get(clip_id) or clip_id for clip_id in batch.clip_id]
            waveform = batch.waveform.to(device)
            yield log_mel(waveform).unsqueeze(1), batch.labels, groups

    fit_probe(student, heard(), table.target, hparams["probe_ridge"])


@torch.inference_mode()
def open_teacher(
    table: Table, split: Split, hparams: dict[str, Any], device: str
) -> LogitsStore | None:
    """Stored logits, or those that the model of a folder gives the training clips."""
    source = hparams["teacher"]
    if source is None or not (Path(source) / HYPERPARAMS).is_file():
        return stored_teacher(table, split, source)
    tagger = AudioTagger.from_hparams(source, run_opts={"device": device})
    if tagger.labels.mids != table.labels.mids:
        raise ValueError(
            f"the teacher in {source} has {len(tagger.labels)} classes, and the data "
            f"{len(table.labels)} others; a teacher speaks of the student's classes"
        )
    path = Path(hparams["output_folder"]) / "teacher_logits"
    if if_main_process():
        with StoreWriter(
            path,
            teacher=str(source),
            teacher_sha256=tagger.ensemble.sha256(),
            labels_sha256=table.labels.sha256,
            num_classes=len(table.labels),
            sample_rate=hparams["sample_rate"],
            clip_seconds=hparams["clip_seconds"],
        ) as store:
            for batch in batches(table, split.train, hparams, "teacher"):
                new = [i for i, name in enumerate(batch.clip_id) if name not in store]
                if not new:
                    continue
                logits = tagger.ensemble(batch.waveform[new].to(device)).logits
                store.append([batch.clip_id[i] for i in new], logits)
    ddp_barrier()
    return LogitsStore(path)


def stored_teacher(
    table: Table, split: Split, source: str | None
) -> LogitsStore | None:
    """A store of logits, if it is of these classes and clips."""
    store = LogitsStore.open_or_none(source)
    if store is not None:
        summary = summarize_rows(table.rows.select(split.train), table.labels)
        clips = zip(summary.clip_ids, summary.indices, strict=True)
        verify(store, clips, labels_sha256=table.labels.sha256).raise_if_bad()
    return store


def batches(
    table: Table, rows: list[int], hparams: dict[str, Any], name: str
) -> Iterator[ClipBatch]:
    """Clips as they are, with progress; those that cannot be read are named."""
    skipped = SkippedClips(hparams["max_unreadable_share"])
    loader = torch.utils.data.DataLoader(
        clips(table, rows, hparams), collate_fn=collate, **hparams["eval_loader"]
    )
    for batch in tqdm(loader, desc=name, unit="batch"):
        skipped.add(batch.skipped, len(batch.clip_id))
        if batch.clip_id:
            yield batch
    skipped.finish_pass()


def clips(table: Table, rows: list[int], hparams: dict[str, Any]) -> Clips:
    """Clips as they are, to be scored."""
    return Clips(table.rows.select(rows), reader(table, hparams))


def training_clips(table: Table, rows: list[int], hparams: dict[str, Any]) -> Clips:
    """Clips as training hears them."""
    return Clips(
        table.rows.select(rows),
        reader(table, hparams),
        hparams["waveform_augment"],
        hparams["waveform_mix"],
        hparams["seed"],
        replace_unreadable=True,
    )


def reader(table: Table, hparams: dict[str, Any]) -> ClipReader:
    """Makes clips of rows."""
    return ClipReader(table.labels, hparams["clip_seconds"], hparams["sample_rate"])


def training_draws(table: Table, rows: list[int], hparams: dict[str, Any]) -> Draws:
    """The order of an epoch; rare classes more often where the YAML says so."""
    weights = None
    if hparams["class_balanced"]:
        summary = summarize_rows(table.rows.select(rows), table.labels)
        weights = class_balanced_weights(summary.indices, len(table.labels))
    return Draws(len(rows), None, weights, hparams["seed"])


def finish(brain: Any, table: Table, split: Split, hparams: dict[str, Any]) -> None:
    """Writes scores, figures and the model, and says where they are."""
    folder, scores = Path(hparams["output_folder"]), brain.scores
    write_scores(folder, scores, table.labels)
    result = RunResult("test", scores, None, hparams["history"].epochs)
    plot_curves(folder / "curves.png", [result])
    if isinstance(scores, ClassificationScores):
        plot_confusion(folder / "confusion.png", scores, table.labels)
    test = {f"test, {scores.num_clips} clips": scores}
    if "device" in table.rows.column_names:
        test |= by_device(brain.stats, table.rows.select(split.test))
    sizes = f"{len(split.train)} for training, {len(split.valid)} to choose the epoch"
    model = TrainedModel(
        hparams["student"], table.labels, table.target, hparams["clip_seconds"]
    )
    provenance = Provenance(
        name=Path(hparams["dataset"]).name,
        started_from=str(hparams["pretrained"]),
        data=f"{hparams['dataset']}: {len(table.rows)} clips ({sizes})",
        data_licence=table.rows.info.license,
        scores=test,
    )
    write_model_folder(folder / "model", model, provenance)
    if hparams["whole_clips"]:
        whole = whole_clip_scores(folder / "model", table, split, brain.device)
        provenance.scores["test, whole clips"] = whole
        write_model_folder(folder / "model", model, provenance)
    for name, found in provenance.scores.items():
        print(f"{name}: {found}")
    print(f"The model is in {folder / 'model'}")


def by_device(stats: TaggingStats, rows: datasets.Dataset) -> dict[str, Scores]:
    """Scores of the clips of each recording device."""
    device_of = dict(zip(rows["video_id"], rows["device"], strict=True))
    found = {}
    for device in sorted({str(device) for device in device_of.values()}):
        part = type(stats)()
        part.clips = {
            clip_id: row
            for clip_id, row in stats.clips.items()
            if str(device_of[clip_id]) == device
        }
        if part.clips:
            found[f"device {device}"] = part.summarize()
    return found


def whole_clip_scores(model: Path, table: Table, split: Split, device: str) -> Scores:
    """Scores of whole clips: windows of those that are longer are averaged."""
    tagger = AudioTagger.from_hparams(str(model), run_opts={"device": device})
    skipped = SkippedClips(1.0)
    stats = ClassificationStats() if table.target == "multiclass" else TaggingStats()
    for row in tqdm(table.rows.select(split.test), desc="whole clips", unit="clip"):
        indices, _ = table.labels.indices(row["labels"] or ())
        if not indices:
            continue
        sound = row["audio"]["bytes"] or row["audio"]["path"]
        try:
            scores = tagger.probabilities([sound])
        except UnreadableClip as error:
            skipped.add([Skipped(str(row["video_id"]), str(error))], 0)
            continue
        labels = table.labels.multi_hot(indices)[None]
        stats.append([str(row["video_id"])], torch.from_numpy(scores), labels)
    return stats.summarize()


def spread(scores: dict[str, Scores]) -> str:
    """Each fold, their mean, and how far they are apart."""
    values = [found.averages()[found.main] for found in scores.values()]
    name = next(iter(scores.values())).main
    lines = [f"{fold}: {found}" for fold, found in scores.items()]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    lines.append(
        f"{name} {mean:.4f}, standard deviation {deviation:.4f} of {len(values)} folds"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
