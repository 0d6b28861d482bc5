"""Levels for int8: what convolutions take and give, seen on sounds.

What was tried, and on what, stands in docs/results.md. Here is what worked:

- weights have a scale for each output channel;
- a range leaves the outermost values out, so that its levels lie closer;
- below -3 a hard-swish is 0, so that no level is spent there;
- the mean by which rounded weights move a channel is taken off its bias (Nagel et al.,
  "Data-Free Quantization", ICCV 2019, section 4.2);
- the stem and the first two blocks stay in float32: their few channels carry all, and
  they have few weights;
- so do squeeze-excite, heads and activations, which have few operations.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from efficientat_plugin.export.clips import read_clips, spread
from efficientat_plugin.export.graph import Levels, Range, Site
from efficientat_plugin.export.models import OLDEST_OPSET, build_model
from efficientat_plugin.export.sources import Source
from efficientat_plugin.runtime.model_file import LOG_MEL

MAX_CLIPS = 128
VALUES_OF_A_CLIP = 4096  # drawn, of each place in the graph
PERCENTILE = 99.995
FLOAT_STAGES = 3  # the stem and two blocks
HARD_SWISH_ZERO = -3.0


class Seen(NamedTuple):
    """Values at a place in the graph."""

    drawn: NDArray[np.float32]
    means: NDArray[np.float32]  # [C]

    def range(self) -> Range:
        """Without the outermost."""
        low, high = np.percentile(self.drawn, [100 - PERCENTILE, PERCENTILE])
        return Range(float(low), float(high))


def calibrate(source: Source, sounds: Sequence[str | Path]) -> Levels:
    """Levels of the convolutions that may compute in int8.

    Arguments
    ---------
    source : Source
    sounds : sequence of str or Path
        At most 128 of them are heard.

    Returns
    -------
    Levels

    Raises
    ------
    ValueError
        For sounds that nothing can be measured on.
    """
    clips = read_clips(source, spread(sounds, MAX_CLIPS))
    graph, model = build_model(source, "fp32", "out", OLDEST_OPSET)
    sites = [site for site in graph.sites if may_be_int8(site)]
    places = sorted(
        {place for site in sites for place in (site.entering, site.leaving)}
    )
    seen = dict(zip(places, _watched(model, places, source, clips), strict=True))
    ranges: dict[str, Range] = {}
    means: dict[str, NDArray] = {}
    for site in sites:
        leaving = seen[site.leaving].range()
        if site.activation == "HardSwish":
            leaving = leaving._replace(low=max(leaving.low, HARD_SWISH_ZERO))
        ranges |= {
            f"{site.name}:in": seen[site.entering].range(),
            f"{site.name}:out": leaving,
        }
        means[site.name] = seen[site.entering].means
    return Levels(ranges, means)


def may_be_int8(site: Site) -> bool:
    """Whether a convolution is neither in the first stages nor a part of a gate.

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


def _watched(
    model: onnx.ModelProto,
    places: Sequence[str],
    source: Source,
    clips: Sequence[NDArray[np.float32]],
) -> Iterator[Seen]:
    """What stands at places in a graph, one clip after the other."""
    import onnxruntime

    for place in places:
        output = helper.make_tensor_value_info(place, TensorProto.FLOAT, None)
        model.graph.output.append(output)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    drawn: list[list[NDArray[np.float32]]] = [[] for _ in places]
    means: list[list[NDArray[np.float32]]] = [[] for _ in places]
    for clip in clips:
        with torch.inference_mode():
            log_mel = source.log_mel(torch.from_numpy(clip)[None]).numpy()
        for number, value in enumerate(session.run(list(places), {LOG_MEL: log_mel})):
            chosen = rng.integers(value.size, size=VALUES_OF_A_CLIP)
            drawn[number].append(value.reshape(-1)[chosen])
            means[number].append(value.mean((0, 2, 3)))
    for values, channels in zip(drawn, means, strict=True):
        yield Seen(np.concatenate(values), np.mean(channels, axis=0))
