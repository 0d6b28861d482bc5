"""FramePaSST: a transformer of one token per frame, a teacher of sound events."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.passt import NORM_EPS, SPECIAL_TOKENS, Block
from efficientat_plugin.students.student import check_integer
from efficientat_plugin.support.limits import MAX_DEPTH

CHANNELS = (16, 32, 64)  # of the convolutions before the patches
SHRUNK = 4  # mel bins and frames for one of the last convolution's
MLP_RATIO = 4
INITIAL_STD = 0.02


class FramePatches(nn.Module):
    """Turns all bands of two neighbouring frames into a vector.

    Frame t is the patch of frames t and t + 1; the last one sees a frame of zeros.

    Shape
    -----
    maps : [B, 16, n_mels, T']
    frames : [B, D, 1, T']
    """

    def __init__(self, embed_dim: int, n_mels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS[0], embed_dim, (n_mels, 2))

    def forward(self, maps: Tensor) -> Tensor:
        return self.proj(functional.pad(maps, (0, 1)))


class FrameTransformer(nn.Module):
    """The layers of a frame-wise PaSST below the heads: [B, 1, F, T] -> [B, T', D]."""

    def __init__(
        self, n_mels: int, num_frames: int, embed_dim: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        positions = -(-num_frames // SHRUNK)
        self.n_mels = n_mels
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, SPECIAL_TOKENS, embed_dim))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, 1, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, 1, positions))
        first, second, third = CHANNELS
        self.conv_in_1 = nn.Conv2d(1, first, 3, stride=2, padding=1)
        self.conv_in_2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv_in_3 = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.patch_embed = FramePatches(embed_dim, n_mels)
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, MLP_RATIO * embed_dim) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self._initialise()

    def _initialise(self) -> None:
        """Initialises the weights for training from scratch."""
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=INITIAL_STD)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=INITIAL_STD)
                nn.init.zeros_(part.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        maps = log_mel
        for convolution in (self.conv_in_1, self.conv_in_2, self.conv_in_3):
            maps = functional.gelu(convolution(maps))  # at last [B, 64, F / 4, T']
        maps = maps.flatten(1, 2).unflatten(1, (CHANNELS[0], self.n_mels))
        patches = self.patch_embed(maps)  # [B, D, 1, T']
        in_time = self.time_new_pos_embed[..., : patches.shape[3]]
        patches = patches + in_time + self.freq_new_pos_embed
        special = torch.cat([self.cls_token, self.dist_token], 1) + self.new_pos_embed
        special = special.expand(len(patches), -1, -1)
        tokens = torch.cat([special, patches.flatten(2).transpose(1, 2)], 1)
        return self.norm(self.blocks(tokens))[:, SPECIAL_TOKENS:]


class FramePaSST(FrameStudent):
    """The frame-wise PaSST, a teacher for sound event detection: a token every 40 ms.

    Three convolutions leave a quarter of bands and frames. Each remaining frame is a
    token with a learnt position; all tokens attend to each other. A shorter clip uses
    the first positions; a longer one is refused.

    Source: Schmid et al., "Effective Pre-Training of Audio Transformers for Sound Event
    Detection", ICASSP 2025, and its code (PretrainedSED); differs from it in that
    nothing is dropped in training, and that both heads return logits.

    Arguments
    ---------
    num_classes : int
        K, classes of the frames, at least 1; published: 447.
    num_weak_classes : int or None
        K', classes of the clip; None: as many as ``num_classes``.
    n_mels : int
        F, mel bins of the input, a multiple of 4.
    num_frames : int
        T of the longest clip, at least 1.
    embed_dim : int
        D, a multiple of ``num_heads``.
    depth : int
        Number of blocks, 1 to 100.
    num_heads : int
        Number of attention heads per block.
    head : str
        How the clip is scored: "linear" or "attention", as in `FrameMN`.

    Shape
    -----
    log_mel : [B, 1, n_mels, T], T at most ``num_frames``
    strong : [B, num_classes, T'] with T' = ceil(T / 4)
    weak : [B, num_weak_classes]
    embedding : [B, T', embed_dim]

    Raises
    ------
    ValueError
        For illegal options; for inputs that are not log-mels, have another number of
        mel bins, or are longer than ``num_frames``.

    Example
    -------
    >>> passt = FramePaSST(num_classes=5, embed_dim=32, depth=2, num_heads=4).eval()
    >>> passt(torch.zeros(2, 1, 128, 1000)).strong.shape
    torch.Size([2, 5, 250])
    """

    def __init__(
        self,
        num_classes: int = 447,
        num_weak_classes: int | None = None,
        n_mels: int = 128,
        num_frames: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        head: str = "linear",
    ) -> None:
        super().__init__(num_classes, num_weak_classes, head)
        check_integer("n_mels", n_mels)
        check_integer("num_frames", num_frames)
        check_integer("embed_dim", embed_dim)
        check_integer("depth", depth, at_most=MAX_DEPTH)
        check_integer("num_heads", num_heads)
        if n_mels % SHRUNK:
            raise ValueError(
                f"n_mels={n_mels} is illegal; give a multiple of {SHRUNK}, as the "
                "convolutions leave a quarter of the bands"
            )
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}; "
                "change one of them"
            )
        self.n_mels, self.num_frames = n_mels, num_frames
        self.model = nn.ModuleDict(
            {
                "fpasst": FrameTransformer(
                    n_mels, num_frames, embed_dim, depth, num_heads
                )
            }
        )
        self.add_heads(embed_dim)

    def describe(self) -> str:
        """Describes the student in a few words."""
        transformer: Any = self.model["fpasst"]
        width = transformer.cls_token.shape[-1]
        return f"FramePaSST of {len(transformer.blocks)} blocks of {width}"

    def check_input(self, log_mel: Tensor) -> None:
        """Refuses an input that is not a batch of log-mels, or has no positions."""
        super().check_input(log_mel)
        bands, frames = log_mel.shape[2:]
        if bands != self.n_mels:
            raise ValueError(
                f"log_mel has {bands} mel bins, but the patches have "
                f"n_mels={self.n_mels}; give {self.n_mels}"
            )
        if frames > self.num_frames:
            raise ValueError(
                f"log_mel has {frames} frames, but the positions are for at most "
                f"num_frames={self.num_frames}; give windows of at most "
                f"{self.num_frames} frames"
            )

    def frames(self, log_mel: Tensor) -> Tensor:
        """Computes the input of the heads: [B, 1, F, T] -> [B, T', D]."""
        return self.model["fpasst"](log_mel)
