"""FrameMN: an MN that keeps a frame every 40 ms, for sound event detection."""

import torch
from torch import Tensor, nn

from efficientat_plugin.students.blocks import (
    LAST_EXPANSION,
    BlockSpec,
    ConcurrentSqueezeExcite,
    ConvNormActivation,
    InvertedResidual,
    block_specs,
    initialise_,
)
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.sequence import build_sequence_model
from efficientat_plugin.students.sequence.layers import SequenceOptions
from efficientat_plugin.students.student import check_integer, check_positive

# Strides of the fifteen blocks. With that of the stem, 128 bands become one, and two
# halvings leave a frame for each four of the log-mel.
BAND_STRIDES = (1, 2, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2)
FRAME_STRIDES = (1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
SE_RATIO = 4


def frame_block_specs(width: float) -> list[BlockSpec]:
    """Returns the fifteen blocks of MN, with other strides.

    Arguments
    ---------
    width : float
        Multiplies every number of channels.

    Returns
    -------
    list of BlockSpec

    Example
    -------
    >>> specs = frame_block_specs(0.4)
    >>> specs[5].strides, specs[5].has_residual
    ((2, 1), False)
    """
    specs = block_specs(width, (1, 1, 1, 1), dilated=False, reduced_tail=False)
    return [
        spec._replace(nominal_stride=bands, frame_stride=frames)
        for spec, bands, frames in zip(specs, BAND_STRIDES, FRAME_STRIDES, strict=True)
    ]


class FrameBackbone(nn.Module):
    """The convolutions of MN, strided over bands and hardly over frames.

    Arguments
    ---------
    width : float

    Shape
    -----
    log_mel : [B, 1, F, T]
    frames : [B, T', C], T' a quarter of T, rounded up; C is 960 at width 1

    Example
    -------
    >>> FrameBackbone(0.1)(torch.zeros(2, 1, 128, 1000)).shape
    torch.Size([2, 250, 96])
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        specs = frame_block_specs(width)
        self.channels = LAST_EXPANSION * specs[-1].out_channels
        # Stem, 64 x 500 for ten seconds
        stem = ConvNormActivation(
            1, specs[0].in_channels, 3, stride=2, activation=nn.Hardswish
        )
        # Blocks, to 1 x 250
        blocks = []
        for spec in specs:
            gate = None
            if spec.squeeze_excite:
                gate = ConcurrentSqueezeExcite({"c": spec.expanded}, "max", SE_RATIO)
            blocks.append(InvertedResidual(spec, gate))
        # Last convolution, 1 x 250
        last = ConvNormActivation(
            specs[-1].out_channels, self.channels, activation=nn.Hardswish
        )
        self.features = nn.Sequential(stem, *blocks, last)
        initialise_(self)

    def forward(self, log_mel: Tensor) -> Tensor:
        maps = self.features(log_mel)  # [B, C, F', T'], F' is 1 for up to 128 bands
        # A mean of one band would copy it, into another layout.
        bands = maps.squeeze(2) if maps.shape[2] == 1 else maps.mean(2)
        return bands.transpose(1, 2)


class FrameMN(FrameStudent):
    """A frame-wise MobileNet for sound event detection: scores for every 40 ms.

    It is `MN` with strides that leave one band and a quarter of the frames, an optional
    sequence model over these frames, and two class layers: strong, for each frame, and
    weak, for the clip. Squeeze-excite averages over all frames, so the scores of a
    frame depend on the whole clip.

    Source: Morocutti et al., "Exploring Performance-Complexity Trade-Offs in Sound
    Event Detection", 2025, and its code (EfficientSED); differs from it in that the
    number of frames follows the clip, that more than 128 bands are averaged at the end,
    that both heads return logits, and that "mamba", which needs a package with CUDA
    kernels and has no published weights, is missing.

    Arguments
    ---------
    num_classes : int
        K, classes of the frames, at least 1; published: 447.
    num_weak_classes : int or None
        K', classes of the clip; None: as many as ``num_classes``.
    width : float
        Multiplies every number of channels; published: 0.4, 0.6, 1, 2 and 3.
    sequence_model : str
        "none", "tf" (transformer), "attn" (attention alone), "gru", "tcn" (causal
        convolutions) or "hybrid" (minGRU beside attention).
    sequence_dim : int
        Channels of the sequence model, for "gru" in each direction: a multiple of 8 for
        "hybrid"; of 16 for "tf" and "attn", and of 8 for a "tf" below 128.
    sequence_layers : int
        Layers of the sequence model, at least 1; for "tcn" stacks of five.
    head : str
        How the clip is scored: "linear" averages over frames; "attention" weights the
        frames' probabilities, for equal classes of frames and clip.
    dropout : float
        Dropout in "tf" and "tcn", in [0, 1).

    Shape
    -----
    log_mel : [B, 1, F, T]
    strong : [B, num_classes, T'] with T' = ceil(T / 4), 250 for ten seconds
    weak : [B, num_weak_classes]
    embedding : [B, T', D]; D is ``sequence_dim``, twice that for "gru", and 960 times
        the width for "none"

    Raises
    ------
    ValueError
        For illegal options, and for inputs that are not log-mels.

    Example
    -------
    >>> student = FrameMN(num_classes=10, width=0.1, sequence_dim=32).eval()
    >>> strong, weak, embedding = student(torch.zeros(2, 1, 128, 1000))
    >>> strong.shape, weak.shape, embedding.shape
    (torch.Size([2, 10, 250]), torch.Size([2, 10]), torch.Size([2, 250, 96]))
    """

    def __init__(
        self,
        num_classes: int = 447,
        num_weak_classes: int | None = None,
        width: float = 1.0,
        sequence_model: str = "none",
        sequence_dim: int = 256,
        sequence_layers: int = 2,
        head: str = "linear",
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_classes, num_weak_classes, head)
        check_positive("width", width)
        check_integer("sequence_dim", sequence_dim)
        check_integer("sequence_layers", sequence_layers)
        if not 0 <= dropout < 1:
            raise ValueError(
                f"dropout={dropout!r} is illegal; give a probability in [0, 1)"
            )
        self.width, self.sequence_model = width, sequence_model

        backbone = FrameBackbone(width)
        sequence_options = SequenceOptions(sequence_dim, sequence_layers, dropout)
        # Convolutions keep the memory layout of their weights; this one is faster.
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = nn.ModuleDict({"fmn": backbone})
        self.seq_model, channels = build_sequence_model(
            sequence_model, backbone.channels, sequence_options
        )
        self.add_heads(channels)

    @property
    def backbone(self) -> nn.Module:
        """The convolutions, [B, 1, F, T] -> [B, T', C]."""
        return self.model["fmn"]

    def stages(self) -> list[nn.Module]:
        """Returns stem (0), blocks (1 to 15) and last convolution (16)."""
        return [*self.backbone.get_submodule("features").children()]

    def describe(self) -> str:
        """Describes the student in a few words."""
        sequence = "no" if self.sequence_model == "none" else self.sequence_model
        return f"FrameMN of width {self.width:g} with {sequence} sequence model"

    def frames(self, log_mel: Tensor) -> Tensor:
        """Computes the input of the heads: [B, 1, F, T] -> [B, T', D]."""
        return self.seq_model(self.backbone(log_mel))
