"""``efficientat evaluate``: scores a model on labelled sounds."""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientat_plugin.cli.arguments import (
    MODEL_HELP,
    Commands,
    add_model_details,
    probability,
)
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from efficientat_plugin.data.labelled import LabelledClips
    from efficientat_plugin.evaluation.metrics import Scores, TaggingStats
    from efficientat_plugin.tagging.base import SoundTagger

EXAMPLES = """\
examples:
  efficientat evaluate results/finetune/1234 sounds/ --output scores
  efficientat evaluate mn04_as clips.csv --label-column category --output scores
  efficientat evaluate model.onnx esc50.parquet --fold 3 --output scores
"""
NOT_HERE = ("run.json", "hyperparams.yaml")  # files that mark a run or model folder


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="score a model on labelled sounds",
        description="Scores a model on labelled sounds, each from beginning to end, as "
        "recipes/finetune.py does,\nand writes scores.json, per_class.csv and, if "
        "sounds have one class each, confusion.png.",
        epilog=EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a folder with one folder per class; a CSV, TSV, JSONL or Parquet file "
        "with a column of files and one of labels, or a folder that contains one; or a "
        "hub id",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="created if missing",
    )
    add_model_details(parser)
    add_table_options(parser)
    chosen = parser.add_argument_group(
        "which clips",
        "default: the test clips of the model's run, if DATA is the data of that run; "
        "else the split named test; else all",
    )
    chosen.add_argument("--split", metavar="NAME", help="one split; all: every clip")
    chosen.add_argument("--fold", metavar="NAME", help="one fold")
    chosen.add_argument(
        "--test-share",
        type=probability,
        metavar="P",
        help="a share, drawn as recipes/finetune.py draws its test clips",
    )
    chosen.add_argument(
        "--seed",
        type=int,
        default=1234,
        help="seed of that draw (default: %(default)s)",
    )
    parser.add_argument(
        "--max-unreadable-share",
        type=probability,
        default=0.05,
        metavar="P",
        help="fail if a larger share of the clips cannot be read (default: "
        "%(default)s)",
    )
    parser.set_defaults(run=run)


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for reading labelled data, as in hparams/finetune.yaml."""
    group = parser.add_argument_group("how the data is read")
    group.add_argument(
        "--label-column",
        metavar="NAME",
        help="column of labels (default: found by a common name, such as category)",
    )
    group.add_argument(
        "--audio-column",
        metavar="NAME",
        help="column of sounds or files (default: found by content or a common name)",
    )
    group.add_argument(
        "--group-column",
        metavar="NAME",
        help="column of recordings, which --test-share does not split",
    )
    for role in ("id", "fold", "split"):
        group.add_argument(
            f"--{role}-column",
            metavar="NAME",
            help=f"column of {role}s (default: found by a common name)",
        )
    group.add_argument("--separator", help="separator of the labels in one cell")
    group.add_argument(
        "--classes",
        help="class names, such as dog,cat, if each has a column of 0 and 1",
    )
    group.add_argument(
        "--whole-files",
        action="store_false",
        dest="segments",
        default=None,
        help="score whole files, even if columns such as start and end define segments",
    )
    group.add_argument(
        "--audio-folder",
        metavar="FOLDER",
        help="folder of the files (default: the one with DATA)",
    )
    group.add_argument(
        "--form",
        default="auto",
        help="layout of DATA, such as class_folders (default: %(default)s)",
    )
    group.add_argument(
        "--facts",
        type=Path,
        metavar="YAML",
        help="a file from hparams/data, or one like it",
    )
    group.add_argument(
        "--config", metavar="NAME", help="configuration of a data set on the hub"
    )
    group.add_argument(
        "--cache",
        dest="cache_dir",
        metavar="FOLDER",
        help="cache folder of the `datasets` library",
    )


def is_published(model: str, tagger: "SoundTagger") -> bool:
    """Whether all models have published names, so were trained on AudioSet alone."""
    from efficientat_plugin.pretrained.published import find_published

    facts = getattr(tagger, "facts", None)  # of an exported file
    names = model.split(",") if facts is None else [facts.source]
    return all(find_published(name.strip()) is not None for name in names)


def run(arguments: argparse.Namespace) -> int:
    """Scores the clips that can be read and reports the others."""
    check_folder(arguments.output)

    from efficientat_plugin.cli.load_model import tagger_of
    from efficientat_plugin.data.skipped import SkippedClips, TooManyUnreadable
    from efficientat_plugin.data.summary import describe
    from efficientat_plugin.tagging.whole_clips import (
        choose_clips,
        trained_on_all,
        whole_clip_stats,
    )

    tagger = tagger_of(arguments)
    choice = arguments.split, arguments.fold, arguments.test_share
    known = run_of(arguments.model)
    run = known if choice == (None, None, None) else None
    read = Readings(arguments, tagger)
    clips = None if run is None else clips_of_run(read, run)
    if clips is None:
        is_chosen = known is not None and run is None
        clips, run = read(table_options(arguments)), None
        if known is not None and trained_on_all(known, clips.rows):
            report(
                f"{arguments.model} was trained on all of these clips, so this score "
                "says nothing about other sounds"
            )
        elif known is not None and known.get("test", "").startswith("0 clips"):
            report(
                f"{arguments.model} was trained without setting clips aside to test "
                "on; if these are the clips of its run, this score says nothing about "
                "other sounds"
            )
        elif is_chosen:
            report(
                f"The clips chosen may include some that {arguments.model} was trained "
                "on, which makes its score too high; leave out --split, --fold and "
                "--test-share to score only the clips that its run set aside to test on"
            )
        elif not is_published(arguments.model, tagger):
            report(
                f"It is not known whether {arguments.model} was trained on some of "
                "these clips; if it was, its score on them is too high"
            )
    rows, what = choose_clips(clips.rows, *choice, arguments.seed, run)
    found = describe(rows)
    report(f"{arguments.data}: scoring {what}:\n{found}")
    if found.seconds[0] < tagger.clip_seconds and tagger.short_clips != "as_is":
        how = "repeated" if tagger.short_clips == "repeat" else "padded with silence"
        report(
            f"Sounds shorter than {tagger.clip_seconds:g} s, the length that the model "
            f"was trained on, are {how} up to it"
        )
    check_labels(tagger, clips._replace(rows=rows), what)
    skipped = SkippedClips(arguments.max_unreadable_share)
    try:
        stats = whole_clip_stats(tagger, rows, skipped)
    except TooManyUnreadable as error:
        option = "--max-unreadable-share"
        raise ValueError(str(error).replace("max_unreadable_share", option)) from error
    scores = stats.summarize()
    write(arguments.output, tagger, scores)
    print(scores)
    for name, part in by_device(stats, rows).items():
        print(f"device {shown(name)}: {part}")
    report(f"Scores and results per class are in {arguments.output}")
    return 1 if skipped.reasons else 0


def report(text: str) -> None:
    """Prints a message to stderr."""
    print("\n".join(map(shown, text.splitlines())), file=sys.stderr)


def check_folder(folder: Path) -> None:
    """Raises a ``ValueError`` early if the output folder is not suitable."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give another --output")
    found = [name for name in NOT_HERE if (folder / name).exists()]
    if found:
        raise ValueError(
            f"{folder} contains {found[0]}, so it is a run or model folder, whose "
            "scores would be replaced; give another --output"
        )


def table_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of ``open_labelled`` from the command line."""
    from efficientat_plugin.data.labelled import TABLE_OPTIONS
    from efficientat_plugin.data.rows import has_parquet_split

    options: dict[str, Any] = {"facts": arguments.facts or {}}
    for name in (*TABLE_OPTIONS, "config", "cache_dir"):
        if name != "splits":
            options[name] = getattr(arguments, name)
    split = arguments.split
    if split and not arguments.facts and has_parquet_split(arguments.data, split):
        options["splits"] = {split: split}  # reads this split only, under its own name
    return options


class Readings:
    """Reads labelled clips as the recipes do, and only once for the same options."""

    def __init__(self, arguments: argparse.Namespace, tagger: "SoundTagger") -> None:
        self.arguments, self.tagger = arguments, tagger
        self._read: dict[str, LabelledClips] = {}

    def __call__(self, options: dict[str, Any]) -> "LabelledClips":
        from efficientat_plugin.data.labelled import UNSET, open_labelled

        given = {key: value for key, value in options.items() if value not in UNSET}
        if repr(given) not in self._read:
            labels, target = self.tagger.labels, self.tagger.target
            try:
                self._read[repr(given)] = open_labelled(
                    self.arguments.data, target=target, labels=labels, **options
                )
            except (OSError, ValueError) as error:
                raise ValueError(_as_options(str(error), options)) from error
        return self._read[repr(given)]


def clips_of_run(read: Readings, run: dict[str, Any]) -> "LabelledClips | None":
    """Reads the clips as the model's run did; None if they are not the run's data.

    Options that are not on the command line are taken from the run.
    """
    from efficientat_plugin.data.labelled import TABLE_OPTIONS
    from efficientat_plugin.tagging.whole_clips import clips_tested_by

    options = table_options(read.arguments)
    for name in ("facts", *TABLE_OPTIONS):
        if options.get(name) in (None, "auto", {}) and run.get(name) is not None:
            options[name] = run[name]
    try:
        clips = read(options)
    except (TypeError, ValueError):
        return None
    return None if clips_tested_by(run, clips.rows) is None else clips


def _as_options(text: str, names: Iterable[str]) -> str:
    """Replaces argument names in a reader's message by command-line options."""
    text = text.replace("segments=False", "--whole-files")
    for name in names:
        # A name of one word may be an ordinary word in the message.
        end = r"\b" if "_" in name else "="
        text = re.sub(rf"\b{name}(?={end})", f"--{name.replace('_', '-')}", text)
    return text


def run_of(model: str) -> dict[str, Any] | None:
    """Returns ``run.json`` of the run that trained a model; None if unknown."""
    from efficientat_plugin.support.run_folder import read_run

    path = Path(model)
    if not os.path.exists(path):
        return None
    # A checkpoint is three folders down: RUN/save/CKPT/student.ckpt.
    for folder in (path, *path.absolute().parents[:3]):
        run = read_run(folder)
        if run is not None:
            return run if {"train", "test", "eval"} & run.keys() else None
    return None


def check_labels(tagger: "SoundTagger", clips: "LabelledClips", what: str) -> None:
    """Reports labels that are left out; raises if nothing can be scored."""
    from efficientat_plugin.data.labels import refuse_other_labels
    from efficientat_plugin.data.rows import summarize_rows

    summary = summarize_rows(clips.rows, clips.labels)
    refuse_other_labels(what, summary, clips.labels)
    if not summary.num_labelled:
        raise ValueError(f"{what} have no labels, so nothing can be scored")
    if summary.unknown:
        num_left = len(summary.indices) - summary.num_labelled
        report(f"{summary.left_out}, so {num_left} clips are not scored")
    several = sum(len(indices) > 1 for indices in summary.indices)
    if tagger.target == "multiclass" and several:
        raise ValueError(
            f"{several} of {what} have several of the model's classes, but the model "
            "predicts one per sound; score it on clips with one class each, or give "
            "another --label-column"
        )


def write(folder: Path, tagger: "SoundTagger", scores: "Scores") -> None:
    """Writes the same result files as a run."""
    from efficientat_plugin.evaluation.metrics import ClassificationScores
    from efficientat_plugin.evaluation.report import plot_confusion, write_scores
    from efficientat_plugin.support.files import explain_write_errors

    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_scores(folder, scores, tagger.labels)
        if isinstance(scores, ClassificationScores):
            plot_confusion(folder / "confusion.png", scores, tagger.labels)
        else:  # one from an earlier command would not match these scores
            (folder / "confusion.png").unlink(missing_ok=True)


def by_device(stats: "TaggingStats", rows: Any) -> dict[str, "Scores"]:
    """Returns the scores of each recording device, if the data names devices."""
    if "device" not in rows.column_names:
        return {}
    pairs = zip(rows["video_id"][:], rows["device"][:], strict=True)
    return stats.by_group({clip_id: str(device) for clip_id, device in pairs})
