"""Is the default of fine-tuning the best choice, however many clips there are?

> python benchmarks/finetune_sizes.py TABLE --group_column speaker --sizes 2 6 30 150

TABLE is what ``recipes/finetune.py`` takes. For each size and seed, groups are dealt
out to training and test clips, and so many clips of each class are drawn to train on.
Every way is tested on the same clips, those of groups that no training clip is of:

- default: ``hparams/finetune.yaml`` as it is;
- probe: the same without epochs;
- logistic regression: scikit-learn's, on the standardised embedding of the published
  tagger, its penalty chosen by cross-validation on the training clips;
- published: a new class layer, 80 epochs at 6e-5, as ``hparams/esc50.yaml``;
- plain: a new class layer, Adam at 1e-3, as many epochs as the default.

Prints the accuracy of each, its mean and standard deviation over seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from efficientat_plugin import AudioTagger
from efficientat_plugin.data.tables import read_table

REPOSITORY = Path(__file__).resolve().parents[1]
WHOLE_PASS = ["--probe_ridge", "null", "--freeze_batch_norm", "False"]
WAYS = {
    "default": [],
    "probe": ["--number_of_epochs", "0"],
    "published": [*WHOLE_PASS, "--number_of_epochs", "80", "--lr", "6.0e-5"],
    "plain": [*WHOLE_PASS, "--lr", "0.001"],
}
LOGISTIC_REGRESSION = "logistic regression"


def main() -> None:
    """Prints a row for each size, a column for each way."""
    arguments = parse()
    rows = read_table(
        arguments.table,
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
                found[way].append(accuracy(rows, size, seed, way, arguments))
                print(f"{size} {seed} {way} {found[way][-1]:.4f}", file=sys.stderr)
        cells = [
            f"{statistics.mean(values):.3f} ({statistics.pstdev(values):.3f})"
            for values in found.values()
        ]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--label_column")
    parser.add_argument("--group_column")
    parser.add_argument("--audio_folder")
    parser.add_argument("--pretrained", default="mn04_as")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 6, 30, 150])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, LOGISTIC_REGRESSION])
    return parser.parse_args()


def draw(rows: datasets.Dataset, size: int, seed: int) -> datasets.Dataset:
    """``size`` training clips of each class, and all clips of other groups to test."""
    rng = np.random.default_rng(seed)
    groups = [
        group or clip
        for group, clip in zip(rows["group"], rows["video_id"], strict=False)
    ]
    names = sorted(set(groups))
    # A quarter of the groups is tested on; of few groups, one after the other.
    order = np.roll(names, -seed) if len(names) < 10 else rng.permutation(names)
    tested = set(order[: max(1, len(names) // 4)])
    labels = [names[0] for names in rows["labels"]]
    sides = np.full(len(rows), "", dtype=object)
    sides[[group in tested for group in groups]] = "test"
    for label in sorted(set(labels)):
        pool = [i for i, one in enumerate(labels) if one == label and not sides[i]]
        sides[rng.permutation(pool)[:size].astype(int)] = "train"
    kept = rows.select(np.flatnonzero(sides != ""))
    return kept.add_column("split", [str(side) for side in sides if side])


def accuracy(
    rows: datasets.Dataset, size: int, seed: int, way: str, options: argparse.Namespace
) -> float:
    """Of one way on the test clips."""
    drawn = draw(rows, size, seed)
    if way == LOGISTIC_REGRESSION:
        return logistic_regression(drawn, options.pretrained)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "clips.parquet")
        columns = {"audio": drawn["audio"], "split": drawn["split"]}
        columns["label"] = [names[0] for names in drawn["labels"]]
        columns["group"] = drawn["group"]
        datasets.Dataset.from_dict(columns).to_parquet(table)
        command = [sys.executable, str(REPOSITORY / "recipes" / "finetune.py")]
        command += [str(REPOSITORY / "hparams" / "finetune.yaml"), "--noprogressbar"]
        command += ["--dataset", str(table), "--pretrained", options.pretrained]
        command += ["--output_folder", f"{folder}/run", "--seed", str(seed), *WAYS[way]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return json.loads(Path(folder, "run", "scores.json").read_text())["accuracy"]


def logistic_regression(rows: datasets.Dataset, pretrained: str) -> float:
    """Of the embedding of the published tagger."""
    tagger = AudioTagger.from_student(pretrained)
    sounds = [audio["bytes"] or audio["path"] for audio in rows["audio"]]
    embeddings = np.stack([tagger.embed(sound) for sound in sounds])
    labels = np.array([names[0] for names in rows["labels"]])
    train = np.array(rows["split"]) == "train"
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=[1e-3, 1e-2, 1e-1, 1.0],
            cv=min(3, min(np.unique(labels[train], return_counts=True)[1])),
            l1_ratios=(0,),
            use_legacy_attributes=False,
            max_iter=2000,
        ),
    )
    model.fit(embeddings[train], labels[train])
    return float(model.score(embeddings[~train], labels[~train]))


if __name__ == "__main__":
    main()
