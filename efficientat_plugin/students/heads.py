"""The heads: from a student's maps to logits, one call signature.

A new head takes `HeadOptions`, uses what it needs of them, names the children that
grow with the number of classes in ``class_layers``, and joins `HEADS`.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class HeadOptions(NamedTuple):
    """What heads are built from; none uses everything."""

    in_channels: int  # D
    num_classes: int  # K
    hidden: int  # units of the mlp head's hidden layer
    dropout: float = 0.2
    attention_heads: int = 4


class MeanOverMaps(nn.Module):
    """The average over bands and frames: [B, C, F, T] -> [B, C]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


class MLP(nn.Sequential):
    """Average, hidden layer, class layer: MobileNetV3's own head.

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
            nn.Identity(),  # keeps the published numbers of the layers behind it
            nn.Linear(options.in_channels, options.hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(options.dropout, inplace=True),
            nn.Linear(options.hidden, options.num_classes),
        )


class Linear(nn.Sequential):
    """Average and class layer, no more: what a probe trains.

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
    """Class maps by a 1 x 1 convolution, normalised, then averaged.

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
    """Frame-wise logits, averaged over time by several learned attentions.

    Source: Gong et al., "PSLA", section III-D; differs from it in that logits, not
    probabilities, are averaged.

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
    FLOOR: ClassVar[float] = 1e-7  # no frame is ever wholly ignored

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
    """Whether logits follow from the embedding; attention over frames needs frames.

    Example
    -------
    >>> from efficientat_plugin import MN
    >>> classifies_embeddings(MN(width=0.1, head="multihead_attention_pooling"))
    False
    """
    return not isinstance(student.classifier, MultiheadAttentionPooling)
