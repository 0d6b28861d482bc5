"""Is the default of fine-tuning the best choice, however many clips there are?

> python benchmarks/finetune_sizes.py DATASET --group_column speaker --sizes 2 6 30 150

DATASET is what ``recipes/finetune.py`` takes. For each size and seed, groups are dealt
out to training and test clips, and so many clips of each class are drawn to train on.
Every way is tested on the same clips, those of groups that no training clip is of:

- default: ``hparams/finetune.yaml`` as it is;
- probe: the same without epochs;
- logistic regression: scikit-learn's, on the standardised embedding of the published
  tagger, its penalty chosen by cross-validation where there are clips enough;
- published: a new class layer, 80 epochs at 6e-5, as ``hparams/esc50.yaml``;
- plain: a new class layer, Adam at 1e-3, 20 epochs; of those, and of the published
  ones, the last.

Prints the accuracy of each, or of many classes a clip their mAP, its mean and
standard deviation over seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from efficientat_plugin import AudioTagger
from efficientat_plugin.data.labelled import LabelledClips, open_labelled

REPOSITORY = Path(__file__).resolve().parents[1]
WHOLE_PASS = ["--probe_ridge", "null", "--freeze_batch_norm", "False"]
WHOLE_PASS += ["--valid_share", "0"]
WAYS = {
    "default": [],
    "probe": ["--number_of_epochs", "0"],
    "published": [*WHOLE_PASS, "--number_of_epochs", "80", "--lr", "6.0e-5"],
    "plain": [*WHOLE_PASS, "--number_of_epochs", "20", "--lr", "0.001"],
}
LOGISTIC_REGRESSION = "logistic regression"
SEPARATOR = "|"
PENALTIES = [1e-3, 1e-2, 1e-1, 1.0]
PENALTY = 0.1  # where it cannot be chosen


def main() -> None:
    """Prints a row for each size, a column for each way."""
    arguments = parse()
    datasets.disable_progress_bars()
    clips = open_labelled(
        arguments.dataset,
        {},
        label_column=arguments.label_column,
        group_column=arguments.group_column,
        audio_folder=arguments.audio_folder,
    )
    ways = arguments.ways or [*WAYS, LOGISTIC_REGRESSION]
    print(f"| clips a class | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for size in arguments.sizes:
        found: dict[str, list[float]] = {way: [] for way in ways}
        for seed in arguments.seeds:
            for way in ways:
                found[way].append(score(clips, size, seed, way, arguments))
                print(f"{size} {seed} {way} {found[way][-1]:.4f}", file=sys.stderr)
        cells = [
            f"{statistics.mean(values):.3f} ({statistics.pstdev(values):.3f})"
            for values in found.values()
        ]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--label_column")
    parser.add_argument("--group_column")
    parser.add_argument("--audio_folder")
    parser.add_argument("--pretrained", default="mn04_as")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 6, 30, 150])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, LOGISTIC_REGRESSION])
    return parser.parse_args()


def draw(clips: LabelledClips, size: int, seed: int) -> datasets.Dataset:
    """``size`` training clips of each class, and all clips of other groups to test.

    A clip of several classes is drawn for the first of them.
    """
    rows, rng = clips.rows, np.random.default_rng(seed)
    groups = rows["video_id"][:]
    if "group" in rows.column_names:
        both = zip(rows["group"], groups, strict=True)
        groups = [group or clip for group, clip in both]
    names = sorted(set(groups))
    # A quarter of the groups is tested on; of few groups, one after the other.
    order = np.roll(names, -seed) if len(names) < 10 else rng.permutation(names)
    tested = set(order[: max(1, len(names) // 4)])
    first = [labels[0] if labels else None for labels in rows["labels"]]
    sides = np.full(len(rows), "", dtype=object)
    for i, (group, label) in enumerate(zip(groups, first, strict=True)):
        if group in tested and label is not None:
            sides[i] = "test"
    for label in sorted({label for label in first if label is not None}):
        pool = [i for i, one in enumerate(first) if one == label and not sides[i]]
        sides[rng.permutation(pool)[:size].astype(int)] = "train"
    kept = rows.select(np.flatnonzero(sides != ""))
    columns = {
        "audio": kept["audio"][:],
        "split": [str(side) for side in sides if side],
        "label": [SEPARATOR.join(labels) for labels in kept["labels"]],
    }
    if "group" in rows.column_names:
        columns["group"] = kept["group"][:]
    return datasets.Dataset.from_dict(columns)


def score(
    clips: LabelledClips, size: int, seed: int, way: str, options: argparse.Namespace
) -> float:
    """Accuracy or mAP of one way on the test clips."""
    drawn = draw(clips, size, seed)
    if way == LOGISTIC_REGRESSION:
        return logistic_regression(drawn, clips, options.pretrained)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "clips.parquet")
        drawn.to_parquet(table)
        command = [sys.executable, str(REPOSITORY / "recipes" / "finetune.py")]
        command += [str(REPOSITORY / "hparams" / "finetune.yaml"), "--noprogressbar"]
        command += ["--dataset", str(table), "--pretrained", options.pretrained]
        command += ["--output_folder", f"{folder}/run", "--seed", str(seed)]
        command += ["--num_workers", "0", "--target", clips.target]
        if clips.target == "multilabel":
            command += ["--separator", SEPARATOR]
        done = subprocess.run([*command, *WAYS[way]], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        found = json.loads(Path(folder, "run", "scores.json").read_text())
        return found["mAP" if clips.target == "multilabel" else "accuracy"]


def logistic_regression(
    drawn: datasets.Dataset, clips: LabelledClips, pretrained: str
) -> float:
    """Of the embedding of the published tagger."""
    tagger = AudioTagger.from_student(pretrained)
    sounds = [audio["bytes"] or audio["path"] for audio in drawn["audio"]]
    features = np.stack([tagger.embed(sound) for sound in sounds])
    train = np.array(drawn["split"]) == "train"
    scaler = StandardScaler().fit(features[train])
    seen, held_out = (
        scaler.transform(features[train]),
        scaler.transform(features[~train]),
    )
    if clips.target == "multilabel":
        targets = multi_hot(drawn["label"][:])
        fitted = OneVsRestClassifier(LogisticRegression(C=PENALTY, max_iter=2000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that no training clip has
            probabilities = fitted.fit(seen, targets[train]).predict_proba(held_out)
        there = targets[~train].any(axis=0)
        return float(
            average_precision_score(targets[~train][:, there], probabilities[:, there])
        )
    labels = np.array(drawn["label"])
    fewest = min(np.unique(labels[train], return_counts=True)[1])
    model = LogisticRegression(C=PENALTY, max_iter=2000)
    if fewest > 1:
        model = LogisticRegressionCV(
            Cs=PENALTIES,
            cv=min(3, fewest),
            scoring="accuracy",
            l1_ratios=(0,),
            use_legacy_attributes=False,
            max_iter=2000,
        )
    return float(model.fit(seen, labels[train]).score(held_out, labels[~train]))


def multi_hot(cells: list[str]) -> NDArray[np.int64]:
    """[N, K] of N cells of labels."""
    found = [set(cell.split(SEPARATOR)) for cell in cells]
    classes = sorted(set().union(*found))
    return np.array([[int(name in one) for name in classes] for one in found])


if __name__ == "__main__":
    main()
