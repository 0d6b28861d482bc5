"""The heads, which turn a student's maps into logits and share one signature.

A new head takes `HeadOptions`, uses those it needs, lists the children that depend on
the number of classes in ``class_layers``, and is added to `HEADS`.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class HeadOptions(NamedTuple):
    """The options that heads are built from; no head uses all of them."""

    in_channels: int  # D
    num_classes: int  # K
    hidden: int  # units of the mlp head's hidden layer
    dropout: float = 0.2
    attention_heads: int = 4


class MeanOverMaps(nn.Module):
    """Averages over bands and frames: [B, C, F, T] -> [B, C]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


class MLP(nn.Sequential):
    """The head of MobileNetV3: average, hidden layer, class layer.

    Arguments
    ---------
    options : HeadOptions

    Shape
    -----
    maps : [B, D, F, T]
    logits : [B, K]

    Example
    -------
    >>> MLP(HeadOptions(16, num_classes=5, hidden=8))(torch.zeros(2, 16, 4, 3)).shape
    torch.Size([2, 5])
    """

    class_layers: ClassVar[tuple[str, ...]] = ("5",)

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(
            MeanOverMaps(),
            nn.Identity(),  # keeps the published numbering of the layers after it
            nn.Linear(options.in_channels, options.hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(options.dropout, inplace=True),
            nn.Linear(options.hidden, options.num_classes),
        )


class Linear(nn.Sequential):
    """Average and class layer only, as for a linear probe.

    Arguments
    ---------
    options : HeadOptions

    Shape
    -----
    maps : [B, D, F, T]
    logits : [B, K]

    Example
    -------
    >>> Linear(HeadOptions(16, num_classes=5, hidden=8))(torch.zeros(2, 16, 4, 3)).shape
    torch.Size([2, 5])
    """

    class_layers: ClassVar[tuple[str, ...]] = ("2",)

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(
            MeanOverMaps(),
            nn.Dropout(options.dropout),
            nn.Linear(options.in_channels, options.num_classes),
        )


class FullyConvolutional(nn.Sequential):
    """Class maps from a 1 x 1 convolution, normalised and then averaged.

    Arguments
    ---------
    options : HeadOptions

    Shape
    -----
    maps : [B, D, F, T]
    logits : [B, K]

    Example
    -------
    >>> head = FullyConvolutional(HeadOptions(16, num_classes=5, hidden=8))
    >>> head(torch.zeros(2, 16, 4, 3)).shape
    torch.Size([2, 5])
    """

    class_layers: ClassVar[tuple[str, ...]] = ("0", "1")

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(
            nn.Conv2d(options.in_channels, options.num_classes, 1, bias=False),
            nn.BatchNorm2d(options.num_classes),
            MeanOverMaps(),
        )


class MultiheadAttentionPooling(nn.Module):
    """Averages frame-wise logits over time with several learned attention heads.

    Source: Gong et al., "PSLA", section III-D; differs from it in that logits instead
    of probabilities are averaged.

    Arguments
    ---------
    options : HeadOptions

    Shape
    -----
    maps : [B, D, F, T]
    logits : [B, K]

    Example
    -------
    >>> head = MultiheadAttentionPooling(HeadOptions(16, num_classes=5, hidden=8))
    >>> head(torch.zeros(2, 16, 4, 3)).shape
    torch.Size([2, 5])
    """

    class_layers: ClassVar[tuple[str, ...]] = ("subspace_proj",)
    FLOOR: ClassVar[float] = 1e-7  # every frame has some weight

    def __init__(self, options: HeadOptions) -> None:
        super().__init__()
        heads, self.num_classes = options.attention_heads, options.num_classes
        self.subspace_proj = nn.Linear(
            options.in_channels, 2 * heads * options.num_classes
        )
        self.head_weight = nn.Parameter(torch.full((1, heads, 1), 1 / heads))

    def forward(self, maps: Tensor) -> Tensor:
        frames = maps.mean(2).transpose(1, 2)  # [B, T, D]
        heads = self.head_weight.shape[1]
        projected = self.subspace_proj(frames).unflatten(
            2, (2, heads, self.num_classes)
        )
        attention, values = projected.unbind(2)  # [B, T, heads, K] each
        attention = torch.sigmoid(attention).clamp(self.FLOOR, 1 - self.FLOOR)
        pooled = (attention * values).sum(1) / attention.sum(1)  # [B, heads, K]
        return (pooled * self.head_weight).sum(1)


HEADS: dict[
    str, type[MLP | Linear | FullyConvolutional | MultiheadAttentionPooling]
] = {
    "mlp": MLP,
    "linear": Linear,
    "fully_convolutional": FullyConvolutional,
    "multihead_attention_pooling": MultiheadAttentionPooling,
}


def classifies_embeddings(student: nn.Module) -> bool:
    """Whether the head can classify an embedding alone; attention needs the frames.

    Example
    -------
    >>> from efficientat_plugin import MN
    >>> classifies_embeddings(MN(width=0.1, head="multihead_attention_pooling"))
    False
    """
    return not isinstance(student.classifier, MultiheadAttentionPooling)
