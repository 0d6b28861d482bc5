"""General-purpose embeddings from several layers of a student.

The middle layers keep information on pitch and timbre that the last ones drop in
favour of the classes. The layers are called one by one instead of with hooks, so the
student is not changed.

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
ALL_SQUEEZED = ("se5", "se11", "se13", "se15")  # the sources that "se" stands for
OF_HEAD = ("clf1", "clf2", "logits")

# Applied to the output of a block: [B, C, F, T] -> [B, size]
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.amax((2, 3)),
    "avg_plus_max": lambda maps: maps.mean((2, 3)) + maps.amax((2, 3)),
    "avg_and_max": lambda maps: torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1),
    "time_avg": lambda maps: maps.mean(3).flatten(1),
    "time_avg_plus_max": lambda maps: (maps.mean(3) + maps.amax(3)).flatten(1),
}


def channel_gate(stage: nn.Module) -> SqueezeExcite | None:
    """Returns the squeeze-excite over channels of a block, if it has one."""
    for part in stage.modules():
        if isinstance(part, SqueezeExcite) and part.other_dims == [2, 3]:
            return part
    return None


def hidden_layer(head: MLP) -> nn.Linear:
    """Returns the first linear layer of an mlp head."""
    return next(part for part in head if isinstance(part, nn.Linear))


def known_sources(student: Student) -> list[str]:
    """Lists the sources that a student's embeddings can use, in the published order.

    Arguments
    ---------
    student : MN or DyMN

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If the student is neither an MN nor a DyMN.

    Example
    -------
    >>> from efficientat_plugin import MN, DyMN
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
    """Returns the channels and bands of a stage's output."""
    if isinstance(stage, DynamicInvertedResidual):
        return stage.proj_norm.num_features, strided(bands, stage.context_gen.stride)
    layers = [part for part in stage.modules() if isinstance(part, nn.Conv2d)]
    stride = max(layer.stride[0] for layer in layers)
    return layers[-1].out_channels, strided(bands, stride)


def bands_of(student: Student) -> int:
    """Returns F of a student: as loaded, as built, or as published."""
    built = getattr(student, "n_mels", 128)
    return getattr(student, "front_end", {}).get("n_mels", built)


def advance_gated(
    block: InvertedResidual, gate: SqueezeExcite, maps: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes a block's output, and the bottleneck of its ``gate`` before the ReLU."""
    inner = maps
    for layer in block.block:
        if isinstance(layer, ConcurrentSqueezeExcite):
            squeezed = gate.fc1(inner.mean((2, 3)))
        inner = layer(inner)
    return (inner + maps if block.has_residual else inner), squeezed


def ordered(sources: Sequence[str], student: Student) -> tuple[str, ...]:
    """Sorts sources as published and expands "se"; refuses unknown ones."""
    asked = [
        name
        for source in sources
        for name in (ALL_SQUEEZED if source == "se" else (source,))
    ]
    known = known_sources(student)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked or len(set(asked)) < len(asked):
        fault = f"{unknown[0]!r} is not a source of this student" if unknown else ""
        fault = fault or ("a source appears twice" if asked else "there is no source")
        raise ValueError(
            f"sources={sources!r} is illegal for this {type(student).__name__}: "
            f"{fault}; choose from {', '.join(known)}"
        )
    return tuple(name for name in known if name in asked)


class LayerEmbedding(nn.Module):
    """Pools and concatenates the outputs of several layers of a student.

    Neither building nor using it changes the student or its mode. Layers after the
    last requested one are not computed.

    Source: Schmid et al., "Low-complexity Audio Embedding Extractors", EUSIPCO 2023;
    differs from its code in that gradients pass, and that every head can be used. Its
    code reads "clf2" before the activation, which then overwrites it in place; so its
    embeddings, like these, hold the values after the activation.

    Arguments
    ---------
    student : MN or DyMN
    sources : sequence of str
        In any order; the embedding has them in the following one. "mel": the mean of
        the log-mel over time. "clf1": the pooled input of the head. "clf2": the hidden
        layer of the mlp head, after its activation. "logits". "se4" and so on, for an
        MN: the bottleneck of that block's squeeze-excite over channels, before its
        ReLU; "se" stands for those of blocks 5, 11, 13 and 15. "b0" to "b15": the
        output of the stem or of that block. `known_sources` lists those of a student.
    pooling : str
        How the maps of blocks are pooled. Over bands and frames: "avg", "max",
        "avg_plus_max" (their sum) or "avg_and_max" (concatenated). Over frames only,
        with all bands of a channel next to each other: "time_avg" or
        "time_avg_plus_max".
    n_mels : int or None
        F; None: the F that the student was loaded or built with, else 128.

    Shape
    -----
    log_mel : [B, 1, F, T]
    embedding : [B, dimension]

    Raises
    ------
    ValueError
        For sources that the student does not have, an unknown pooling, and inputs
        that are not log-mels of ``n_mels`` bands.

    Example
    -------
    >>> from efficientat_plugin import MN
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
        depths = [0]  # stages to compute; the mean of the log-mel needs none
        for name in self.sources:
            is_of_block = name not in ("mel", *OF_HEAD)
            depths.append(1 + int(name.lstrip("bse")) if is_of_block else 0)
        is_whole = any(name in OF_HEAD for name in self.sources)
        self._depth = len(student.stages()) if is_whole else max(depths)

    @property
    def dimension(self) -> int:
        """D, the size of an embedding."""
        return sum(self._sizes.values())

    def split(self, embedding: Tensor) -> dict[str, Tensor]:
        """Splits an embedding by source: [B, dimension] -> [B, size] each."""
        parts = embedding.split(list(self._sizes.values()), dim=1)
        return dict(zip(self._sizes, parts, strict=True))

    def forward(self, log_mel: Tensor) -> Tensor:
        """Computes embeddings: [B, 1, F, T] -> [B, dimension]."""
        self.student.check_input(log_mel)
        if log_mel.shape[2] != self.n_mels:
            raise ValueError(
                f"log_mel has {log_mel.shape[2]} bands, but the embedding is built for "
                f"n_mels={self.n_mels}; use a LogMel with that many, or build "
                f"the embedding with n_mels={log_mel.shape[2]}"
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
        """Computes the requested outputs of the head from the last maps."""
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
        """Returns the size of each source, in order."""
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
