"""PaSST: the patchout transformer, which is a teacher or, in a Brain, a student.

``forward([B, 1, F, T]) -> StudentOutput``, like every student; `weights.load_teacher`
loads published weights into it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.students.student import Student, check_integer, check_positive
from efficientat_plugin.support.limits import MAX_DEPTH

PATCH = 16  # mel bins and frames of a patch
SPECIAL_TOKENS = 2  # class and distillation
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention with several heads: [B, L, D] -> [B, L, D]."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        projected = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # [B, heads, L, D / heads]
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers applied to each token separately: [B, L, D] -> [B, L, D]."""

    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals: [B, L, D] -> [B, L, D]."""

    def __init__(self, embed_dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = FeedForward(embed_dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbedding(nn.Module):
    """Turns overlapping patches into vectors: [B, 1, F, T] -> [B, D, F', T']."""

    def __init__(self, embed_dim: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, PATCH, stride=strides)

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.proj(log_mel)


def num_patches(size: int, stride: int) -> int:
    """Returns the number of patches along an axis of ``size`` bins or frames."""
    return (size - PATCH) // stride + 1


def num_positions(size: int, stride: int) -> int:
    """Returns the length of the published position table, which may be one longer."""
    return max(size // stride, num_patches(size, stride))


def hide(patches: Tensor, axis: int, option: str, hidden: int) -> Tensor:
    """Removes ``hidden`` random patches along an axis, with one draw per batch."""
    present = patches.shape[axis]
    if hidden == 0:
        return patches
    if hidden >= present:
        raise ValueError(
            f"{option}={hidden} removes all of the {present} that a clip has; "
            "lower it, or give longer clips"
        )
    kept = torch.randperm(present)[: present - hidden].sort().values
    return patches.index_select(axis, kept.to(patches.device))


class PaSST(Student):
    """The patchout audio spectrogram transformer, as published.

    The tokens are patches of 16 mel bins and 16 frames, which overlap if strides are
    smaller. Each has a position in frequency and one in time, which are learnt
    separately. In training, patchout removes some of the patches after the positions
    are added, with one draw per batch from torch's global generator.

    A clip shorter than ``num_frames`` uses the first time positions in evaluation, and
    consecutive ones from a random start in training. Longer clips are refused.

    Source: Koutini et al., "Efficient Training of Audio Transformers with Patchout",
    Interspeech 2022, section 2, and its code; differs from it in that longer clips are
    refused instead of cut, and that ``head_dist``, which is unused, is not trained.

    Arguments
    ---------
    num_classes : int
        K, at least 1.
    n_mels : int
        F, mel bins of the input, at least 16.
    num_frames : int
        Mel frames that the time positions cover, at least 16; published: 998 for
        clips of ten seconds at a hop of 10 ms, which have 1000.
    frequency_stride : int
        Distance of patches, mel bins; published: 10, 12, 14 and 16 (no overlap).
    time_stride : int
        Distance of patches, mel frames; published: as in frequency.
    embed_dim : int
        D, a multiple of ``num_heads``.
    depth : int
        Number of blocks, 1 to 100; published: 12, and 7 for the light one.
    num_heads : int
        Number of attention heads per block.
    mlp_ratio : float
        Units of a feed-forward's hidden layer, as a multiple of D.
    patchout_time : int
        Columns of patches (same frames) that training removes; 0 or more.
    patchout_frequency : int
        Rows of patches (same mel bins) that training removes; 0 or more.
    patchout_unstructured : int
        Further patches that training removes; 0 or more.

    Shape
    -----
    log_mel : [B, 1, F, T]
    logits : [B, num_classes]
    embedding : [B, D]

    Raises
    ------
    ValueError
        For illegal options; for inputs that are not log-mels, have another number of
        mel bins, are shorter than a patch or longer than the time positions; and for a
        patchout that removes all patches of a clip.

    Example
    -------
    >>> passt = PaSST(num_classes=50, embed_dim=32, depth=2, num_heads=4).eval()
    >>> logits, embedding = passt(torch.zeros(2, 1, 128, 500))
    >>> logits.shape, embedding.shape
    (torch.Size([2, 50]), torch.Size([2, 32]))
    """

    min_frames = PATCH

    def __init__(
        self,
        num_classes: int = 527,
        n_mels: int = 128,
        num_frames: int = 998,
        frequency_stride: int = 10,
        time_stride: int = 10,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        patchout_time: int = 0,
        patchout_frequency: int = 0,
        patchout_unstructured: int = 0,
    ) -> None:
        super().__init__(num_classes)
        check_integer("n_mels", n_mels, at_least=PATCH)
        check_integer("num_frames", num_frames, at_least=PATCH)
        check_integer("frequency_stride", frequency_stride)
        check_integer("time_stride", time_stride)
        check_integer("embed_dim", embed_dim)
        check_integer("depth", depth, at_most=MAX_DEPTH)
        check_integer("num_heads", num_heads)
        check_positive("mlp_ratio", mlp_ratio)
        check_integer("patchout_time", patchout_time, at_least=0)
        check_integer("patchout_frequency", patchout_frequency, at_least=0)
        check_integer("patchout_unstructured", patchout_unstructured, at_least=0)
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}; "
                "change one of them"
            )
        self.n_mels, self.num_frames = n_mels, num_frames
        self.frequency_stride, self.time_stride = frequency_stride, time_stride
        self.patchout_time = patchout_time
        self.patchout_frequency = patchout_frequency
        self.patchout_unstructured = patchout_unstructured

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape))

        # Tokens, and positions of tokens, rows and columns
        rows = num_positions(n_mels, frequency_stride)
        columns = num_positions(num_frames, time_stride)
        self.cls_token = empty(1, 1, embed_dim)
        self.dist_token = empty(1, 1, embed_dim)
        self.new_pos_embed = empty(1, SPECIAL_TOKENS, embed_dim)
        self.freq_new_pos_embed = empty(1, embed_dim, rows, 1)
        self.time_new_pos_embed = empty(1, embed_dim, 1, columns)
        # Patches, 12 x 99 for ten seconds
        self.patch_embed = PatchEmbedding(embed_dim, (frequency_stride, time_stride))
        hidden = round(embed_dim * mlp_ratio)
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, hidden) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes)
        )
        self.head_dist = nn.Linear(embed_dim, num_classes)
        self.head_dist.requires_grad_(False)  # in every checkpoint, but unused
        self._initialise()

    def _initialise(self) -> None:
        """Initialises the weights for training from scratch."""
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def describe(self) -> str:
        """Describes the student in a few words."""
        return f"PaSST of {len(self.blocks)} blocks of {self.cls_token.shape[-1]}"

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        """The head, under the name that it has in other students."""
        return self.head

    @property
    def max_frames(self) -> int:
        """Mel frames of the longest clip that the time positions cover."""
        columns = self.time_new_pos_embed.shape[3]
        return PATCH + columns * self.time_stride - 1

    def check_input(self, log_mel: Tensor) -> None:
        """Refuses an input that is not a batch of log-mels, or has no positions."""
        super().check_input(log_mel)
        bands, frames = log_mel.shape[2:]
        if bands != self.n_mels:
            raise ValueError(
                f"log_mel has {bands} mel bins, but the frequency positions are for "
                f"n_mels={self.n_mels}; give {self.n_mels}, or build the PaSST with "
                f"n_mels={bands}"
            )
        if frames < PATCH:
            raise ValueError(
                f"log_mel has {frames} frames, fewer than the {PATCH} of a patch; give "
                f"clips of at least {PATCH} frames, or pad them"
            )
        if frames > self.max_frames:
            raise ValueError(
                f"log_mel has {frames} frames, but the time positions of "
                f"num_frames={self.num_frames} are for {PATCH} to {self.max_frames}; "
                f"build the PaSST with num_frames={frames}, or give windows of at most "
                f"{self.max_frames} frames"
            )

    def forward(self, log_mel: Tensor) -> StudentOutput:
        """Computes logits and embeddings: [B, 1, F, T] -> [B, K], [B, D]."""
        self.check_input(log_mel)
        tokens = self._patchout(self._placed(self.patch_embed(log_mel)))
        tokens = torch.cat([self._special_tokens(len(tokens)), tokens], dim=1)
        tokens = self.norm(self.blocks(tokens))
        embedding = tokens[:, :SPECIAL_TOKENS].mean(1)
        return StudentOutput(self.head(embedding), embedding)

    def _placed(self, patches: Tensor) -> Tensor:
        """Adds the positions to the patches: [B, D, F', T'] -> [B, D, F', T']."""
        rows, columns = patches.shape[2:]
        spare = self.time_new_pos_embed.shape[3] - columns
        first = int(torch.randint(1 + spare, ())) if self.training and spare else 0
        in_frequency = self.freq_new_pos_embed[:, :, :rows]
        in_time = self.time_new_pos_embed[..., first : first + columns]
        return patches + in_time + in_frequency

    def _patchout(self, patches: Tensor) -> Tensor:
        """Flattens patches row by row, and removes some in training: -> [B, L, D]."""
        if self.training:
            patches = hide(patches, 3, "patchout_time", self.patchout_time)
            patches = hide(patches, 2, "patchout_frequency", self.patchout_frequency)
        tokens = patches.flatten(2)  # [B, D, L]
        if self.training:
            tokens = hide(
                tokens, 2, "patchout_unstructured", self.patchout_unstructured
            )
        return tokens.transpose(1, 2)

    def _special_tokens(self, clips: int) -> Tensor:
        """Returns the class and the distillation token: [B, 2, D]."""
        tokens = torch.cat([self.cls_token, self.dist_token], dim=1)
        return (tokens + self.new_pos_embed).expand(clips, -1, -1)
