"""Embeddings over time from students that score frames."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.features import LogMel
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.tagging.detection import OVERLAP, ChunkScorer
from efficientat_plugin.tagging.frames import ChunkCutter

CHUNK_SECONDS = 10.0  # what the published networks were trained on
CHUNKS_PER_BATCH = 8


class FrameEmbedding(nn.Module):
    """Embeds every frame of sounds: what a student's class layers are computed from.

    Arguments
    ---------
    student : FrameStudent
        A `FrameMN` or a `FramePaSST`.
    log_mel : LogMel
        The front end that it was trained with.

    Shape
    -----
    waveform : [B, N]
    embedding : [B, D], the mean of the frames

    Raises
    ------
    ValueError
        If the log-mel's bands do not match the student.

    Example
    -------
    >>> from efficientat_plugin import FrameMN
    >>> log_mel = LogMel(sample_rate=16000, hop_length=160, f_max=7000.0)
    >>> model = FrameEmbedding(FrameMN(num_classes=3, width=0.1), log_mel).eval()
    >>> model(torch.zeros(2, 16000)).shape, model.over_time(torch.zeros(16000)).shape
    (torch.Size([2, 96]), torch.Size([25, 96]))
    """

    def __init__(self, student: FrameStudent, log_mel: LogMel) -> None:
        super().__init__()
        bands = getattr(student, "front_end", {}).get("n_mels", log_mel.n_mels)
        if log_mel.n_mels != bands:
            raise ValueError(
                f"log_mel gives {log_mel.n_mels} bands, the student takes {bands}; use "
                f"LogMel(n_mels={bands})"
            )
        self.student, self.log_mel = student, log_mel
        self.sample_rate = log_mel.sample_rate  # Hz
        self.frame_samples = student.frame_stride * log_mel.hop_length
        size = student.class_layer().in_features
        self.scene_embedding_size = self.timestamp_embedding_size = size

    @property
    def frame_seconds(self) -> float:
        """Time from one frame to the next, s."""
        return self.frame_samples / self.sample_rate

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, N] -> [B, D]"""
        return self._frames(waveform).mean(1)

    @torch.no_grad()
    def over_time(self, waveform: Tensor) -> Tensor:
        """Embeds a sound of any length: [N] -> [T', D], on the CPU.

        It is embedded in chunks of 10 s that overlap by a fifth and are cross-faded, as
        `EventDetector` scores it. Frame k is about the sound from k frames on.
        """
        frame, rate = self.frame_samples, self.sample_rate
        window = round(CHUNK_SECONDS * rate) // frame * frame
        hop = round(window * (1 - OVERLAP)) // frame * frame
        cutter = ChunkCutter(window, hop, frame)
        scorer = ChunkScorer(self._chunks, cutter, self._lengthened, CHUNKS_PER_BATCH)
        samples = waveform.detach().float().cpu().numpy()
        parts = [*scorer.feed(samples), *scorer.finish()]
        return torch.from_numpy(np.concatenate([part for part in parts if len(part)]))

    def _frames(self, waveform: Tensor) -> Tensor:
        return self.student(self.log_mel(waveform).unsqueeze(1)).embedding.float()

    def _chunks(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        device = self.log_mel.window.device
        return self._frames(torch.from_numpy(waveforms).to(device)).cpu().numpy()

    def _lengthened(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Adds silence up to a whole frame, and to what a log-mel needs."""
        least = max(len(samples), self.log_mel.min_samples)
        missing = -(-least // self.frame_samples) * self.frame_samples - len(samples)
        return functional.pad(torch.from_numpy(samples), (0, missing)).numpy()
