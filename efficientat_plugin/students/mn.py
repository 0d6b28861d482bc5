"""MN: MobileNetV3 as an audio tagger."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from efficientat_plugin.students.blocks import (
    FUSIONS,
    LAST_EXPANSION,
    SE_DIMS,
    BlockSpec,
    ConcurrentSqueezeExcite,
    ConvNormActivation,
    InvertedResidual,
    block_specs,
    hidden_channels,
    initialise_,
    nominal_sizes,
)
from efficientat_plugin.students.heads import HEADS, HeadOptions
from efficientat_plugin.students.student import (
    Student,
    check_choice,
    check_integer,
    check_mobile_options,
)


def gate_sizes(
    spec: BlockSpec, bands_frames: tuple[int, int], se_dims: str
) -> dict[str, int]:
    """Maps the letters of a block's squeeze-excite to sizes; empty if it has none."""
    if se_dims == "none" or not spec.squeeze_excite:
        return {}
    bands, frames = bands_frames
    sizes = {"c": spec.expanded, "f": bands, "t": frames}
    return {letter: sizes[letter] for letter in se_dims}


class MN(Student):
    """MobileNetV3-Large with one input channel, as published for audio tagging.

    Source: Schmid et al., "Efficient Large-Scale Audio Tagging via
    Transformer-to-CNN Knowledge Distillation", ICASSP 2023; differs from its code in
    that squeeze-excite over bands works, and that batches of one clip and single
    classes keep their dimensions.

    Arguments
    ---------
    num_classes : int
        K, at least 1.
    width : float
        Multiplies every number of channels; published: 0.1 to 4.
    head : str
        "mlp", "linear", "fully_convolutional" or "multihead_attention_pooling".
    strides : sequence of int
        Strides of blocks 2, 4, 7 and 13, each 1 or 2.
    dilated : bool
        Whether the last three blocks use dilation 2 instead of striding.
    reduced_tail : bool
        Whether the last three blocks and the hidden layer have half the channels.
    se_dims : str
        Dimensions that squeeze-excite gates: letters of "cft" (channels, bands,
        frames), each at most once, in the order of the layers; or "none". "f" fixes
        the number of bands to ``n_mels``, "t" the length to ``n_frames``.
    se_agg : str
        How several gated maps are combined: "max", "avg", "add" or "min".
    se_r : int
        Divides a size to give its squeeze-excite bottleneck.
    attention_heads : int
        Number of heads of multihead_attention_pooling.
    n_mels : int
        F, bands of the input; used only if "f" is in ``se_dims``.
    n_frames : int
        T, frames of the input; used only if "t" is in ``se_dims``.
    dropout : float
        Dropout before the class layer of the mlp and the linear head, in [0, 1).

    Shape
    -----
    log_mel : [B, 1, F, T]
    logits : [B, num_classes]
    embedding : [B, D], 960 at width 1

    Raises
    ------
    ValueError
        For illegal options, and for inputs that are not log-mels of the fixed size.

    Example
    -------
    >>> import torch
    >>> student = MN(num_classes=50, width=0.1).eval()
    >>> logits, embedding = student(torch.zeros(2, 1, 128, 100))
    >>> logits.shape, embedding.shape
    (torch.Size([2, 50]), torch.Size([2, 96]))
    """

    def __init__(
        self,
        num_classes: int = 527,
        width: float = 1.0,
        head: str = "mlp",
        strides: Sequence[int] = (2, 2, 2, 2),
        dilated: bool = False,
        reduced_tail: bool = False,
        se_dims: str = "c",
        se_agg: str = "max",
        se_r: int = 4,
        attention_heads: int = 4,
        n_mels: int = 128,
        n_frames: int = 1000,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_classes)
        check_mobile_options(width, strides, dropout)
        check_choice("head", head, HEADS)
        check_choice("se_agg", se_agg, FUSIONS)
        check_integer("se_r", se_r)
        check_integer("attention_heads", attention_heads)
        check_integer("n_mels", n_mels)
        check_integer("n_frames", n_frames)
        check_se_dims(se_dims)
        specs = block_specs(width, strides, dilated, reduced_tail)
        sizes = nominal_sizes(specs, n_mels, n_frames)
        check_dilated_gates(specs, n_mels, n_frames, se_dims)
        self.width = width
        self.se_dims, self.n_mels, self.n_frames = se_dims, n_mels, n_frames

        # Stem, 64 x 500 for ten seconds
        layers: list[nn.Module] = [
            ConvNormActivation(
                1, specs[0].in_channels, 3, stride=2, activation=nn.Hardswish
            )
        ]
        # Blocks, to 4 x 32
        for spec, size in zip(specs, sizes, strict=True):
            gated = gate_sizes(spec, size, se_dims)
            squeeze_excite = (
                ConcurrentSqueezeExcite(gated, se_agg, se_r) if gated else None
            )
            layers.append(InvertedResidual(spec, squeeze_excite))
        # Last convolution, 4 x 32
        embedding = LAST_EXPANSION * specs[-1].out_channels
        layers.append(
            ConvNormActivation(
                specs[-1].out_channels, embedding, activation=nn.Hardswish
            )
        )
        self.features = nn.Sequential(*layers)
        hidden = hidden_channels(width, reduced_tail)
        self.classifier = HEADS[head](
            HeadOptions(embedding, num_classes, hidden, dropout, attention_heads)
        )
        initialise_(self)
        # Convolutions keep the memory layout of their weights; this one is faster.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def check_input(self, log_mel: Tensor) -> None:
        """Refuses an input that is not a batch of log-mels of the fixed size."""
        super().check_input(log_mel)
        bands, frames = log_mel.shape[2:]
        if "f" in self.se_dims and bands != self.n_mels:
            raise ValueError(
                f"log_mel has {bands} bands, but se_dims={self.se_dims!r} fixes them "
                f"to n_mels={self.n_mels}; build the student with n_mels={bands}"
            )
        if "t" in self.se_dims and frames != self.n_frames:
            raise ValueError(
                f"log_mel has {frames} frames, but se_dims={self.se_dims!r} fixes "
                f"them to n_frames={self.n_frames}; build the student with "
                f"n_frames={frames}, or crop or pad the clips"
            )

    def describe(self) -> str:
        """Describes the student in a few words."""
        return f"MN of width {self.width:g}"

    def maps(self, log_mel: Tensor) -> Tensor:
        """Computes the input of the head: [B, 1, F, T] -> [B, D, F', T']."""
        return self.features(log_mel)

    def stages(self) -> list[nn.Module]:
        """Returns stem, blocks and last convolution."""
        return [*self.features]


def check_se_dims(se_dims: object) -> None:
    """Refuses an option that does not name dimensions for squeeze-excite."""
    is_letters = (
        isinstance(se_dims, str)
        and 0 < len(se_dims) == len(set(se_dims))
        and set(se_dims) <= set(SE_DIMS)
    )
    if se_dims != "none" and not is_letters:
        raise ValueError(
            f"se_dims={se_dims!r} is illegal; give letters of 'cft', each at most "
            "once, or 'none'"
        )


def check_dilated_gates(
    specs: Sequence[BlockSpec], n_mels: int, n_frames: int, se_dims: str
) -> None:
    """Refuses gates over dimensions that dilation leaves larger than striding would."""
    actual = [spec._replace(nominal_stride=spec.stride) for spec in specs]
    nominal_size = nominal_sizes(specs, n_mels, n_frames)[-1]
    actual_size = nominal_sizes(actual, n_mels, n_frames)[-1]
    for letter, built, seen in zip("ft", nominal_size, actual_size, strict=True):
        if se_dims != "none" and letter in se_dims and built != seen:
            raise ValueError(
                f"dilated=True leaves {seen} entries, but squeeze-excite over "
                f"{letter!r} (se_dims={se_dims!r}) is built for {built}; use "
                f"dilated=False, a last stride of 1, or se_dims without {letter!r}"
            )
