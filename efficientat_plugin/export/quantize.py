"""Finds the int8 levels of convolutions from their inputs and outputs on sounds.

All experiments are in docs/results.md. This is what worked:

- weights have a scale per output channel;
- a range excludes the outermost values, so its levels are closer together;
- a hard-swish is 0 below -3, so no levels are spent there;
- the mean shift of a channel by rounded weights is subtracted from its bias (Nagel et
  al., "Data-Free Quantization", ICCV 2019, section 4.2);
- the stem and the first two blocks stay in float32: their few channels carry all the
  information, and they have few weights;
- so do squeeze-excite, heads and activations, which have few operations, and sequence
  models.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from efficientat_plugin.export.assembly import OLDEST_OPSET, build_model
from efficientat_plugin.export.comparison_clips import read_clips, spread
from efficientat_plugin.export.graph import Levels, Range, Site
from efficientat_plugin.export.source import Source
from efficientat_plugin.runtime.model_file import LOG_MEL
from efficientat_plugin.students.frame_passt import FramePaSST

MAX_CLIPS = 128
VALUES_OF_A_CLIP = 4096  # drawn at each place in the graph
FLOAT_STAGES = 3  # the stem and two blocks
HARD_SWISH_ZERO = -3.0


def may_be_int8(site: Site) -> bool:
    """Whether a convolution is neither in the first stages nor part of a gate.

    Example
    -------
    >>> may_be_int8(Site("features.2.block.0", "a", "b", None))
    False
    >>> may_be_int8(Site("features.3.block.0", "a", "b", None))
    True
    """
    if "context_gen" in site.name or site.name == "in_c":
        return False
    numbered = re.match(r"(features|layers)\.(\d+)", site.name)
    if numbered is None:
        return True
    has_stem = numbered[1] == "features"
    return int(numbered[2]) + (not has_stem) >= FLOAT_STAGES


class Recipe(NamedTuple):
    """How levels are computed from observed values; the defaults worked best."""

    is_int8: Callable[[Site], bool] = may_be_int8
    percentile: float = 99.995  # of the values, covered at either end of a range
    corrects_means: bool = True
    clips_hard_swish: bool = True


WHAT_WORKED = Recipe()


class Seen(NamedTuple):
    """Values observed at a place in the graph."""

    drawn: NDArray[np.float32]
    low: float
    high: float
    means: NDArray[np.float32]  # [C]

    def range(self, percentile: float) -> Range:
        """Returns the range of all but the outermost values."""
        if percentile == 100:
            return Range(self.low, self.high)
        low, high = np.percentile(self.drawn, [100 - percentile, percentile])
        return Range(float(low), float(high))


class Observations(NamedTuple):
    """Values observed on sounds."""

    sites: list[Site]
    seen: dict[str, Seen]  # by place

    def levels(self, recipe: Recipe = WHAT_WORKED) -> Levels:
        """Computes the levels of the convolutions that a recipe selects."""
        ranges: dict[str, Range] = {}
        means: dict[str, NDArray] = {}
        for site in self.sites:
            if not recipe.is_int8(site):
                continue
            entering, leaving = self.seen[site.entering], self.seen[site.leaving]
            ranges[f"{site.name}:in"] = entering.range(recipe.percentile)
            span = leaving.range(recipe.percentile)
            if recipe.clips_hard_swish and site.activation == "HardSwish":
                span = span._replace(low=max(span.low, HARD_SWISH_ZERO))
            ranges[f"{site.name}:out"] = span
            if recipe.corrects_means:
                means[site.name] = entering.means
        return Levels(ranges, means)


def observe(source: Source, sounds: Sequence[str | Path]) -> Observations:
    """Observes the inputs and outputs of each convolution on sounds.

    Arguments
    ---------
    source : Source
    sounds : sequence of str or Path
        At most 128 of them are used, one at a time.

    Returns
    -------
    Observations

    Raises
    ------
    ValueError
        If there are no sounds, one cannot be read, or all are silent.
    """
    import onnxruntime

    clips = read_clips(source, spread(sounds, MAX_CLIPS))
    if isinstance(source.model.student, FramePaSST):
        raise ValueError(
            f"{source.name} is a transformer, which int8 does not compute here; choose "
            "int8_weights or fp16"
        )
    graph, model = build_model(source, "fp32", "out", OLDEST_OPSET)
    places = sorted({place for site in graph.sites for place in site[1:3]})
    for place in places:
        output = helper.make_tensor_value_info(place, TensorProto.FLOAT, None)
        model.graph.output.append(output)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    parts: list[list[Seen]] = [[] for _ in places]
    for clip in clips:
        with torch.inference_mode():
            log_mel = source.log_mel(torch.from_numpy(clip)[None]).numpy()
        for part, value in zip(
            parts, session.run(places, {LOG_MEL: log_mel}), strict=True
        ):
            chosen = rng.integers(value.size, size=VALUES_OF_A_CLIP)
            means = value.mean((0, 2, 3))
            drawn = value.reshape(-1)[chosen]
            part.append(Seen(drawn, float(value.min()), float(value.max()), means))
    seen = {
        place: Seen(
            np.concatenate([each.drawn for each in part]),
            min(each.low for each in part),
            max(each.high for each in part),
            np.mean([each.means for each in part], axis=0),
        )
        for place, part in zip(places, parts, strict=True)
    }
    return Observations(graph.sites, seen)
