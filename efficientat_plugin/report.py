"""What a run leaves to read: scores, results per class, curves, a comparison."""

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from efficientat_plugin.complexity import Complexity
from efficientat_plugin.data.targets import LabelTable
from efficientat_plugin.metrics import ClassificationScores, Scores, TaggingScores
from efficientat_plugin.plain_text import cell, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunResult(NamedTuple):
    """One row of a comparison."""

    name: str
    scores: TaggingScores
    complexity: Complexity | None = None
    epochs: Sequence[dict[str, float]] = ()  # of a ``History``


def write_scores(
    folder: str | Path,
    scores: Scores,
    labels: LabelTable,
    others: Mapping[str, Scores] | None = None,
) -> None:
    """Writes ``scores.json`` (macro averages) and ``per_class.csv`` to ``folder``.

    The folder is made if need be.

    Scores of another kind stand in ``scores.json`` too, by their names.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = _averages(scores)
    content |= {name: _averages(other) for name, other in (others or {}).items()}
    _write(
        Path(folder) / "scores.json",
        lambda file: json.dump(content, file, indent=1),
    )

    def write_classes(file: TextIO) -> None:
        table = csv.writer(file, lineterminator="\n")
        columns = scores.per_class()
        table.writerow(["mid", "name", *columns])
        first = next(iter(columns.values()))
        for index in np.flatnonzero(np.isfinite(first)):  # classes with a clip
            numbers = [f"{column[index]:.6f}" for column in columns.values()]
            names = cell(labels.mids[index]), cell(labels.names[index])
            table.writerow([*names, *numbers])

    _write(Path(folder) / "per_class.csv", write_classes)


def _averages(scores: Scores) -> dict[str, float]:
    return scores.averages() | {
        "num_clips": scores.num_clips,
        "num_classes": scores.num_classes,
    }


def comparison_table(results: Sequence[RunResult]) -> str:
    """A Markdown table, a run in each row.

    Example
    -------
    >>> scores = TaggingScores(0.5, 0.9, 1.8, 150, 20, np.ones(20), np.ones(20))
    >>> print(comparison_table([RunResult("teacher", scores)]))
    | run | mAP | AUC | N | classes | parameters | MACs | ms per clip |
    |---|---|---|---|---|---|---|---|
    | teacher | 0.500 | 0.900 | 150 | 20 | - | - | - |
    """
    lines = [
        "| run | mAP | AUC | N | classes | parameters | MACs | ms per clip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scores, complexity, _ in results:
        cells = [name, f"{scores.mAP:.3f}", f"{scores.AUC:.3f}"]
        cells += [str(scores.num_clips), str(scores.num_classes)]
        if complexity is None:
            cells += ["-", "-", "-"]
        else:
            cells.append(f"{complexity.parameters:,}")
            cells.append(f"{complexity.macs / 1e6:.1f} M")
            cells.append(f"{complexity.milliseconds_per_clip:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_comparison(folder: str | Path, results: Sequence[RunResult]) -> Path:
    """Writes ``comparison.md`` to ``folder``."""
    table = comparison_table(results)
    path = Path(folder) / "comparison.md"
    _write(path, lambda file: file.write(table + "\n"))
    return path


def plot_curves(path: str | Path, results: Sequence[RunResult]) -> None:
    """Draws scores and training loss by epoch; a run without epochs is a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    score, loss = figure.subplots(1, 2)
    main = results[0].scores.main
    for name, scores, _, epochs in results:
        if not epochs:
            height = scores.averages()[main]
            score.axhline(height, linestyle="--", color="grey", label=name)
            continue
        steps = [epoch["epoch"] for epoch in epochs]
        score.plot(steps, [epoch[main] for epoch in epochs], label=name)
        if "train_loss" in epochs[0]:
            loss.plot(steps, [epoch["train_loss"] for epoch in epochs], label=name)
    num_clips = results[0].scores.num_clips
    score.set(xlabel="epoch", ylabel=f"{main} (N = {num_clips} clips)", ylim=(0, 1))
    loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
    score.legend()
    _save(figure, path)


def plot_confusion(
    path: str | Path, scores: ClassificationScores, labels: LabelTable
) -> None:
    """Draws the confusion matrix of the classes that have a clip."""
    from matplotlib.figure import Figure

    present = np.flatnonzero(
        scores.confusion.sum(axis=1) + scores.confusion.sum(axis=0)
    )
    names = [shown(labels.names[index]) for index in present]
    counts = scores.confusion[np.ix_(present, present)]
    size = 2.5 + 0.22 * len(present)  # inches
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if share[row, column] > 0.5 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    # A name may have dollars, which are no formula here.
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="told as", ylabel="class", title=str(scores))
    _save(figure, path)


def _save(figure: "Figure", path: str | Path) -> None:
    unfinished = Path(path).with_suffix(".part.png")
    with open(unfinished, "wb") as file:  # which an interruption closes, too
        figure.savefig(file, format="png", dpi=120)
    os.replace(unfinished, path)


def _write(path: Path, write: Callable[[TextIO], object]) -> None:
    """Writes aside and renames, so that no reader meets half a file."""
    unfinished = path.with_name(path.name + ".part")
    with open(unfinished, "w", encoding="utf-8", newline="") as file:
        write(file)
    os.replace(unfinished, path)
