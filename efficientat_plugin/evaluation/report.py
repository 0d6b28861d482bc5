"""Writes the results of a run: scores, results per class, curves, a comparison."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from efficientat_plugin.cost.complexity import Complexity
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.evaluation.metrics import (
    ClassificationScores,
    Scores,
    caution,
    finite,
)
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import cell, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_BOTH = "train_loss_of_both"  # an epoch's loss of two models that teach each other


class RunResult(NamedTuple):
    """A run as a row of a comparison and a line of a figure."""

    name: str
    scores: Scores | None  # None: not tested
    complexity: Complexity | None = None
    epochs: Sequence[dict[str, float]] = ()  # of a ``History``
    clips: str = "evaluation"  # the clips that were scored: "validation", "test", ...


def write_scores(
    folder: str | Path,
    scores: Scores,
    labels: LabelTable,
    others: Mapping[str, Scores] | None = None,
) -> None:
    """Writes ``scores.json`` (macro averages) and ``per_class.csv`` to ``folder``.

    The folder is created if necessary. ``scores.json`` also has the averages of
    ``others``, by their names.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = _averages(scores)
    content |= {name: _averages(other) for name, other in (others or {}).items()}
    with atomic_file(Path(folder) / "scores.json") as file:
        json.dump(content, file, indent=1)
    with atomic_file(Path(folder) / "per_class.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["mid", "name", *class_columns(scores)])
        table.writerows(class_rows(scores, labels))


def class_columns(scores: Scores) -> list[str]:
    """Returns the names of the numbers in ``class_rows``."""
    return ["positives"] * hasattr(scores, "positives") + [*scores.per_class()]


def class_rows(scores: Scores, labels: LabelTable) -> list[list[str]]:
    """Returns id, name and numbers of every class with a clip, sorted by name.

    ``positives`` are the clips of the class. A number that is not defined, such as the
    precision of a class that was never predicted, is empty.
    """
    columns = scores.per_class()
    counts = getattr(scores, "positives", np.ones(len(labels)))
    present = [int(index) for index in np.flatnonzero(counts)]
    present.sort(key=lambda index: (labels.names[index].casefold(), labels.mids[index]))
    rows = []
    for index in present:
        row = [cell(labels.mids[index]), cell(labels.names[index])]
        if hasattr(scores, "positives"):
            row.append(str(scores.positives[index]))
        numbers = [column[index] for column in columns.values()]
        rows.append(row + ["" if np.isnan(n) else f"{n:.6f}" for n in numbers])
    return rows


def _averages(scores: Scores) -> dict[str, Any]:
    sentence = caution(scores)
    return (
        finite(scores.averages())
        | {"num_clips": scores.num_clips, "num_classes": scores.num_classes}
        | ({"caution": sentence} if sentence else {})
    )


def comparison_table(results: Sequence[RunResult]) -> str:
    """Returns a Markdown table with a row for each name.

    Several runs of one name, which differ by their seeds, are averaged. The range of
    their scores is in brackets.

    Example
    -------
    >>> from efficientat_plugin.evaluation.metrics import tagging_scores
    >>> labels = np.eye(20)[np.arange(150) % 20]
    >>> scores = tagging_scores(labels, labels)._replace(mAP=0.5, AUC=0.9)
    >>> print(comparison_table([RunResult("teacher", scores)]))
    | run | mAP | AUC | N | classes | parameters | MACs | ms per clip |
    |---|---|---|---|---|---|---|---|
    | teacher | 0.500 | 0.900 | 150 | 20 | - | - | - |
    """
    lines = [
        "| run | mAP | AUC | N | classes | parameters | MACs | ms per clip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    tested = [result for result in results if result.scores is not None]
    for name in dict.fromkeys(result.name for result in tested):
        same = [result for result in tested if result.name == name]
        averages = [result.scores.averages() for result in same if result.scores]
        cells = [f"{name}, {len(same)} seeds" if len(same) > 1 else name]
        cells += [_mean_and_range([a[key] for a in averages]) for key in ("mAP", "AUC")]
        _, scores, complexity, *_ = same[0]
        cells += [str(scores.num_clips), str(scores.num_classes)] if scores else []
        if complexity is None:
            cells += ["-", "-", "-"]
        else:
            cells.append(f"{complexity.parameters:,}")
            cells.append(f"{complexity.macs / 1e6:.1f} M")
            cells.append(f"{complexity.milliseconds_per_clip:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    cautions = ((result.name, caution(result.scores)) for result in tested)
    notes = dict.fromkeys(
        f"Caution, {name}: {text}." for name, text in cautions if text
    )
    if notes:
        lines += ["", *notes]
    return "\n".join(lines)


def _mean_and_range(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.3f} to {max(values):.3f})"


def write_comparison(folder: str | Path, results: Sequence[RunResult]) -> Path:
    """Writes ``comparison.md`` to ``folder``."""
    table = comparison_table(results)
    path = Path(folder) / "comparison.md"
    with atomic_file(path) as file:
        file.write(table + "\n")
    return path


def plot_curves(path: str | Path, results: Sequence[RunResult]) -> None:
    """Plots scores and losses over epochs; a run without epochs is a horizontal line.

    Runs of one name, which differ by their seeds, have one colour. If no run has an
    epoch, no file is written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, MaxNLocator

    class PlainNumbers(LogFormatter):
        def __call__(self, value: float, position: int | None = None) -> str:
            """Formats a labelled tick as 0.6 instead of 6e-01."""
            return f"{value:g}" if super().__call__(value, position) else ""

    if not any(result.epochs for result in results):
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    score, loss = figure.subplots(1, 2)
    main = next((one.scores.main for one in results if one.scores), "score")
    lowest = 0.0  # ``explained`` may be negative
    names = list(dict.fromkeys(result.name for result in results))
    for name, scores, _, epochs, clips in results:
        style: dict[str, Any] = {"color": f"C{names.index(name)}"}
        if not epochs and scores is not None:
            label = f"{name}, {scores.num_clips} {clips} clips"
            score.axhline(scores.averages()[main], linestyle=":", label=label, **style)
            continue
        style["marker"] = "."  # a single epoch gives no line
        steps = [epoch["epoch"] for epoch in epochs]
        if main in epochs[0]:  # false without validation clips
            heights = [epoch[main] for epoch in epochs]
            lowest = min(lowest, *heights)
            label = f"{name}, {epochs[-1]['num_clips']} {clips} clips"
            score.plot(steps, heights, label=label, **style)
        for key, whose in (("train_loss", name), (OF_BOTH, "sum of both")):
            if key in epochs[0]:
                losses = [epoch[key] for epoch in epochs]
                loss.plot(steps, losses, label=f"{whose}, training clips", **style)
        losses = [epoch.get("valid_loss", np.nan) for epoch in epochs]
        if np.isfinite(losses).any():
            label = f"{name}, {clips} clips"
            loss.plot(steps, losses, linestyle="--", label=label, **style)
    score.set(xlabel="epoch", ylabel=main, ylim=(1.05 * lowest, 1.02))
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    loss.yaxis.set_major_formatter(PlainNumbers())
    loss.yaxis.set_minor_formatter(PlainNumbers(minor_thresholds=(2, 0.5)))
    for axes in (score, loss):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, texts = axes.get_legend_handles_labels()
        once = dict(zip(texts, handles, strict=True))  # seeds of one name share a label
        if once:
            axes.legend(once.values(), once.keys(), fontsize="small")
    _save(figure, path)


def plot_confusion(
    path: str | Path, scores: ClassificationScores, labels: LabelTable
) -> None:
    """Plots the confusion matrix of the classes that are true or predicted."""
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
    # Dollar signs in names do not mark formulas.
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class", title=scores.line())
    _save(figure, path)


def _save(figure: "Figure", path: str | Path) -> None:
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
