"""General-purpose embeddings: what several layers of a student say of a clip.

The middle layers know of pitch and timbre what the last ones have forgotten in
favour of the classes. The student is walked, not hooked: it stays as it is.

Source: Schmid et al., "Low-complexity Audio Embedding Extractors", EUSIPCO 2023.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.students.blocks import (
    ConcurrentSqueezeExcite,
    InvertedResidual,
    SqueezeExcite,
    strided,
)
from efficientat_plugin.students.dynamic import DynamicInvertedResidual
from efficientat_plugin.students.heads import MLP
from efficientat_plugin.students.student import Student, check_choice, check_integer

DEFAULT_SOURCES = ("mel", "b5", "b11", "b13", "b15")
ALL_SQUEEZED = ("se5", "se11", "se13", "se15")  # what "se" stands for
OF_HEAD = ("clf1", "clf2", "logits")

# Of the maps that leave a block: [B, C, F, T] -> [B, size]
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.amax((2, 3)),
    "avg_plus_max": lambda maps: maps.mean((2, 3)) + maps.amax((2, 3)),
    "avg_and_max": lambda maps: torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1),
    "time_avg": lambda maps: maps.mean(3).flatten(1),
    "time_avg_plus_max": lambda maps: (maps.mean(3) + maps.amax(3)).flatten(1),
}


def channel_gate(stage: nn.Module) -> SqueezeExcite | None:
    """The squeeze-excite over channels of a block, if it has one."""
    for part in stage.modules():
        if isinstance(part, SqueezeExcite) and part.other_dims == [2, 3]:
            return part
    return None


def hidden_layer(head: MLP) -> nn.Linear:
    """The first linear layer of an mlp head."""
    return next(part for part in head if isinstance(part, nn.Linear))


def known_sources(student: Student) -> list[str]:
    """What embeddings of a student can be made of, in the published order.

    Arguments
    ---------
    student : MN or DyMN

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        For a student whose layers are not known.

    Example
    -------
    >>> known_sources(MN(width=0.1))[:7]
    ['mel', 'clf1', 'clf2', 'logits', 'se4', 'se5', 'se6']
    >>> known_sources(DyMN(width=0.1, head="fully_convolutional"))[:4]
    ['mel', 'clf1', 'logits', 'b0']
    """
    parts = student.stages()
    has_hidden_layer = isinstance(student.classifier, MLP)
    return [
        "mel",
        *(name for name in OF_HEAD if name != "clf2" or has_hidden_layer),
        *(f"se{number}" for number, stage in enumerate(parts) if channel_gate(stage)),
        *(f"b{number}" for number in range(len(parts) - 1)),
    ]


def size_behind(stage: nn.Module, bands: int) -> tuple[int, int]:
    """Channels and bands of the maps that leave a stage."""
    if isinstance(stage, DynamicInvertedResidual):
        return stage.proj_norm.num_features, strided(bands, stage.context_gen.stride)
    layers = [part for part in stage.modules() if isinstance(part, nn.Conv2d)]
    stride = max(layer.stride[0] for layer in layers)
    return layers[-1].out_channels, strided(bands, stride)


def bands_of(student: Student) -> int:
    """F that a student is for: as loaded, as built, or as published."""
    built = getattr(student, "n_mels", 128)
    return getattr(student, "front_end", {}).get("n_mels", built)


def advance_gated(
    block: InvertedResidual, gate: SqueezeExcite, maps: Tensor
) -> tuple[Tensor, Tensor]:
    """What leaves a block, and what ``gate`` of it squeezes, before its ReLU."""
    inner = maps
    for layer in block.block:
        if isinstance(layer, ConcurrentSqueezeExcite):
            squeezed = gate.fc1(inner.mean((2, 3)))
        inner = layer(inner)
    return (inner + maps if block.has_residual else inner), squeezed


def ordered(sources: Sequence[str], student: Student) -> tuple[str, ...]:
    """Sources in the published order, "se" written out; refuses unknown ones."""
    asked = [
        name
        for source in sources
        for name in (ALL_SQUEEZED if source == "se" else (source,))
    ]
    known = known_sources(student)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked or len(set(asked)) < len(asked):
        fault = f"{unknown[0]!r} is none of this student's" if unknown else ""
        fault = fault or ("a source appears twice" if asked else "there is no source")
        raise ValueError(
            f"sources={sources!r} is illegal for this {type(student).__name__}: "
            f"{fault}; choose among {', '.join(known)}"
        )
    return tuple(name for name in known if name in asked)


class LayerEmbedding(nn.Module):
    """The outputs of several layers of a student, pooled and concatenated.

    Neither building nor using it changes the student, which stays in its mode;
    layers behind the last one asked for are not computed.

    Source: Schmid et al., "Low-complexity Audio Embedding Extractors", EUSIPCO 2023;
    differs from its code in that gradients pass, and that every head will do. Its
    code takes "clf2" before the activation, but that works in place and changes what
    was taken: behind the activation is what its embeddings hold, and these.

    Arguments
    ---------
    student : MN or DyMN
    sources : sequence of str
        In any order; the embedding has them in this one. "mel": the log-mel, its
        mean over time. "clf1": what the head pools. "clf2": the hidden layer of the
        mlp head, behind its activation. "logits". "se4" and the like: of an MN, the
        bottleneck of that block's squeeze-excite over channels, before its ReLU;
        "se" is those of blocks 5, 11, 13 and 15. "b0" to "b15": what leaves the stem
        or that block. `known_sources` lists those that a student has.
    pooling : str
        Of the blocks' maps. Over bands and frames: "avg", "max", "avg_plus_max"
        (their sum) or "avg_and_max" (one behind the other). Over frames alone, bands
        staying apart, channel by channel: "time_avg" or "time_avg_plus_max".
    n_mels : int or None
        F; None: what the student was loaded or built with, else 128.

    Shape
    -----
    log_mel : [B, 1, F, T]
    embedding : [B, dimension]

    Raises
    ------
    ValueError
        For sources that the student does not have, an unknown pooling, and inputs
        that are no log-mels of ``n_mels`` bands.

    Example
    -------
    >>> embedding = LayerEmbedding(MN(width=0.1).eval())
    >>> embedding.dimension
    184
    >>> embedding(torch.zeros(2, 1, 128, 100)).shape
    torch.Size([2, 184])
    """

    def __init__(
        self,
        student: Student,
        sources: Sequence[str] = DEFAULT_SOURCES,
        pooling: str = "avg",
        n_mels: int | None = None,
    ) -> None:
        super().__init__()
        n_mels = bands_of(student) if n_mels is None else n_mels
        check_integer("n_mels", n_mels)
        check_choice("pooling", pooling, POOLINGS)
        self.sources = ordered(sources, student)
        self.student, self.pooling, self.n_mels = student, pooling, n_mels
        self._sizes = self._source_sizes()
        depths = [0]  # stages to walk; the mean of the log-mel needs none
        for name in self.sources:
            is_of_block = name not in ("mel", *OF_HEAD)
            depths.append(1 + int(name.lstrip("bse")) if is_of_block else 0)
        is_whole = any(name in OF_HEAD for name in self.sources)
        self._depth = len(student.stages()) if is_whole else max(depths)

    @property
    def dimension(self) -> int:
        """D, numbers of an embedding."""
        return sum(self._sizes.values())

    def split(self, embedding: Tensor) -> dict[str, Tensor]:
        """An embedding's parts by source: [B, dimension] -> [B, size] each."""
        parts = embedding.split(list(self._sizes.values()), dim=1)
        return dict(zip(self._sizes, parts, strict=True))

    def forward(self, log_mel: Tensor) -> Tensor:
        """[B, 1, F, T] -> [B, dimension]"""
        self.student.check_input(log_mel)
        if log_mel.shape[2] != self.n_mels:
            raise ValueError(
                f"log_mel has {log_mel.shape[2]} bands, the embedding is built for "
                f"n_mels={self.n_mels}; give a LogMel of that many, or build the "
                f"embedding with n_mels={log_mel.shape[2]}"
            )
        parts = {"mel": log_mel.mean((1, 3))}
        maps = log_mel
        for number, stage in enumerate(self.student.stages()[: self._depth]):
            gate = channel_gate(stage) if f"se{number}" in self._sizes else None
            if gate is not None and isinstance(stage, InvertedResidual):
                maps, parts[f"se{number}"] = advance_gated(stage, gate, maps)
            elif isinstance(stage, DynamicInvertedResidual):
                maps = stage(maps, self.student.temperature)
            else:
                maps = stage(maps)
            if f"b{number}" in self._sizes:
                parts[f"b{number}"] = POOLINGS[self.pooling](maps)
        parts |= self._head_parts(maps)
        return torch.cat([parts[name] for name in self.sources], dim=1)

    def _head_parts(self, maps: Tensor) -> dict[str, Tensor]:
        """What the head makes of the last maps, where it is asked for."""
        head = self.student.classifier
        parts = {}
        if "clf1" in self._sizes:
            parts["clf1"] = maps.mean((2, 3))
        if "clf2" in self._sizes and isinstance(head, MLP):
            parts["clf2"] = functional.hardswish(hidden_layer(head)(maps.mean((2, 3))))
        if "logits" in self._sizes:
            parts["logits"] = head(maps)
        return parts

    def _source_sizes(self) -> dict[str, int]:
        """Of each source, in order, how many numbers it adds."""
        sizes = {"mel": self.n_mels, "logits": self.student.num_classes}
        bands = self.n_mels
        for number, stage in enumerate(self.student.stages()):
            channels, bands = size_behind(stage, bands)
            one_frame = torch.empty(1, channels, bands, 1)
            sizes[f"b{number}"] = POOLINGS[self.pooling](one_frame).shape[1]
            if gate := channel_gate(stage):
                sizes[f"se{number}"] = gate.fc1.out_features
        sizes["clf1"] = channels
        if isinstance(self.student.classifier, MLP):
            sizes["clf2"] = hidden_layer(self.student.classifier).out_features
        return {name: sizes[name] for name in self.sources}
