"""Implements the HEAR 2021 API, for benchmarks that load a module by name.

The API consists of ``load_model``, ``get_scene_embeddings`` and
``get_timestamp_embeddings``; sounds are mono, ``[B, N]``, in [-1, 1] at
``model.sample_rate``.

Source: Turian et al., "HEAR: Holistic Evaluation of Audio Representations", 2022;
windows as in Schmid et al., "Low-complexity Audio Embedding Extractors", EUSIPCO
2023.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from efficientat_plugin.features import LogMel
from efficientat_plugin.interfaces.frame_embeddings import FrameEmbedding
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.embeddings import DEFAULT_SOURCES, LayerEmbedding
from efficientat_plugin.students.frame_student import FrameStudent

DEFAULT_STUDENT = "mn10_as"
SCENE_WINDOW_SECONDS, SCENE_HOP_SECONDS = 10.0, 2.5
TIMESTAMP_HOP_SECONDS = 0.05
MAX_BATCH_SECONDS = 80.0  # of windows in one forward pass, which limits memory


class TimestampEmbeddings(NamedTuple):
    """Embeddings of sounds over time."""

    embeddings: Tensor  # [B, n, D]
    timestamps: Tensor  # [B, n], middles of the windows, ms


class HearModel(nn.Module):
    """Maps waveforms to embeddings, with the attributes that the API requires.

    Arguments
    ---------
    embedding : LayerEmbedding
    log_mel : LogMel
        The front end that the embedding's student was trained with.
    timestamp_window_ms : float
        Window length of timestamp embeddings.

    Shape
    -----
    waveform : [B, N]
    embedding : [B, D]

    Raises
    ------
    ValueError
        If the log-mel's bands do not match the embedding, or the window is too short.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> model = HearModel(LayerEmbedding(MN(width=0.1)), LogMel()).eval()
    >>> model.sample_rate, model.scene_embedding_size
    (32000, 184)
    """

    def __init__(
        self,
        embedding: LayerEmbedding,
        log_mel: LogMel,
        timestamp_window_ms: float = 160.0,
    ) -> None:
        super().__init__()
        if log_mel.n_mels != embedding.n_mels:
            raise ValueError(
                f"log_mel gives {log_mel.n_mels} bands, the embedding takes "
                f"{embedding.n_mels}; use LogMel(n_mels={embedding.n_mels})"
            )
        self.embedding, self.log_mel = embedding, log_mel
        self.sample_rate = log_mel.sample_rate  # Hz
        self.scene_embedding_size = embedding.dimension
        self.timestamp_embedding_size = embedding.dimension
        self.timestamp_window = round(timestamp_window_ms * self.sample_rate / 1000)
        if self.timestamp_window < log_mel.min_samples:
            raise ValueError(
                f"timestamp_window_ms={timestamp_window_ms} is too short for n_fft="
                f"{log_mel.n_fft}; at least "
                f"{1000 * log_mel.min_samples / self.sample_rate:g} ms are needed"
            )

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, N] -> [B, D]"""
        return self.embedding(self.log_mel(waveform).unsqueeze(1))


def load_model(
    model_file_path: str | Path = "",
    sources: Sequence[str] = DEFAULT_SOURCES,
    pooling: str = "avg",
    timestamp_window_ms: float = 160.0,
    **student_options: Any,
) -> HearModel | FrameEmbedding:
    """Loads a model for the functions below.

    Arguments
    ---------
    model_file_path : str or Path
        A name from `list_students`, a model folder, the run folder that holds one, or
        a weights file; "": mn10_as.
    sources : sequence of str
        See `LayerEmbedding`.
    pooling : str
        See `LayerEmbedding`.
    timestamp_window_ms : float
        Published: 160, 640 and 1280.
    **student_options
        Arguments of `load_student`, such as ``savedir``, or ``n_mels`` and
        ``hop_length`` for a file that does not contain its front end.

    Returns
    -------
    HearModel or FrameEmbedding
        On the CPU, in evaluation mode. A student of frames embeds those; ``sources``,
        ``pooling`` and ``timestamp_window_ms`` are of the others.

    Raises
    ------
    OSError
        If a download fails or the file does not exist.
    ValueError
        For illegal options.

    Example
    -------
    >>> model = load_model()  # doctest: +SKIP
    >>> model.scene_embedding_size  # doctest: +SKIP
    600
    """
    student = load_student(model_file_path or DEFAULT_STUDENT, **student_options)
    log_mel = LogMel(**student.front_end)
    if isinstance(student, FrameStudent):
        if (sources, pooling, timestamp_window_ms) != (DEFAULT_SOURCES, "avg", 160.0):
            raise ValueError(
                "sources, pooling and timestamp_window_ms are options of students of "
                f"clips; {student.describe()} embeds its frames, so leave them out"
            )
        return FrameEmbedding(student, log_mel).eval()
    embedding = LayerEmbedding(student, sources, pooling)
    return HearModel(embedding, log_mel, timestamp_window_ms).eval()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel | FrameEmbedding) -> Tensor:
    """Computes one embedding per sound.

    Sounds of up to ten seconds are embedded as a whole. For longer ones, embeddings
    are averaged over windows of ten seconds, 2.5 s apart, after both ends are extended
    by five seconds of reflected sound. Sounds too short for a log-mel (514 samples at
    the published settings) are reflected until they are long enough.

    Arguments
    ---------
    audio : Tensor
        [B, N], floating point, on any device.
    model : HearModel
        Set to evaluation mode.

    Returns
    -------
    Tensor
        [B, model.scene_embedding_size], float32, on the model's device, without
        gradients.

    Raises
    ------
    ValueError
        If this is not a batch of sounds, or they have fewer than two samples.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> model = HearModel(LayerEmbedding(MN(width=0.1)), LogMel())
    >>> get_scene_embeddings(torch.zeros(2, 32000), model).shape
    torch.Size([2, 184])
    """
    _check_audio(audio)
    model.eval()  # in training, the front end jitters and norms use the batch
    window = round(SCENE_WINDOW_SECONDS * model.sample_rate)
    if audio.shape[1] > window:
        hop = round(SCENE_HOP_SECONDS * model.sample_rate)
        padded = _reflected(audio, window // 2)
        return _embed(padded.unfold(1, window, hop), model).mean(1)
    missing = max(0, model.log_mel.min_samples - audio.shape[1])
    return _embed(_reflected(audio, (missing + 1) // 2)[:, None], model)[:, 0]


@torch.no_grad()
def get_timestamp_embeddings(
    audio: Tensor, model: HearModel | FrameEmbedding
) -> TimestampEmbeddings:
    """Computes an embedding every 50 ms of each sound; of students of frames, each.

    Timestamps are the middles of windows: 0, 50, ... up to the sound's duration. Both
    ends are extended by half a window of reflected sound; a shorter sound is reflected
    repeatedly. Those of frames are their middles: 20, 60, ... for frames of 40 ms.

    Arguments
    ---------
    audio : Tensor
        [B, N], floating point, on any device.
    model : HearModel
        Set to evaluation mode.

    Returns
    -------
    embeddings : Tensor
        [B, n, model.timestamp_embedding_size], float32, on the model's device,
        without gradients.
    timestamps : Tensor
        [B, n], float32, ms.

    Raises
    ------
    ValueError
        If this is not a batch of sounds, or they have fewer than two samples.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> model = HearModel(LayerEmbedding(MN(width=0.1)), LogMel())
    >>> embeddings, timestamps = get_timestamp_embeddings(torch.zeros(1, 3200), model)
    >>> embeddings.shape, timestamps
    (torch.Size([1, 3, 184]), tensor([[  0.,  50., 100.]]))
    """
    _check_audio(audio)
    model.eval()  # in training, the front end jitters and norms use the batch
    if isinstance(model, FrameEmbedding):
        return _of_frames(audio, model)
    window = model.timestamp_window
    hop = round(TIMESTAMP_HOP_SECONDS * model.sample_rate)
    padded = _reflected(audio, window // 2)
    embeddings = _embed(padded.unfold(1, window, hop), model)
    # From the hop in samples, so rounding errors do not add up; then as float32.
    positions = hop * torch.arange(embeddings.shape[1], dtype=torch.float64)
    timestamps = (1000 * positions / model.sample_rate).float()
    timestamps = timestamps.repeat(len(audio), 1).to(embeddings.device)
    return TimestampEmbeddings(embeddings, timestamps)


def _of_frames(audio: Tensor, model: FrameEmbedding) -> TimestampEmbeddings:
    device = model.log_mel.window.device
    embeddings = torch.stack([model.over_time(sound) for sound in audio]).to(device)
    frames = torch.arange(embeddings.shape[1], dtype=torch.float64, device=device)
    timestamps = (1000 * (frames + 0.5) * model.frame_seconds).float()
    return TimestampEmbeddings(embeddings, timestamps.repeat(len(audio), 1))


def _check_audio(audio: Tensor) -> None:
    if audio.ndim != 2 or not audio.is_floating_point():
        raise ValueError(
            f"audio of shape {tuple(audio.shape)} and {audio.dtype} was given; the API "
            "takes floating-point numbers in [-1, 1] of shape [B, N]"
        )
    if audio.shape[0] < 1 or audio.shape[1] < 2:
        raise ValueError(
            f"audio of shape {tuple(audio.shape)} was given; at least one sound of two "
            "samples is needed: leave empty ones out"
        )


def _reflected(audio: Tensor, margin: int) -> Tensor:
    """Reflects both ends, repeatedly if needed: [B, N] -> [B, N + 2 * margin]."""
    while margin > 0:
        step = min(margin, audio.shape[1] - 1)  # one reflection is at most this long
        audio = nn.functional.pad(audio, (step, step), "reflect")
        margin -= step
    return audio


def _embed(windows: Tensor, model: HearModel | FrameEmbedding) -> Tensor:
    """Embeds windows in batches of limited duration: [B, n, N] -> [B, n, D]."""
    device = model.log_mel.window.device
    sounds, per_sound, length = windows.shape
    per_batch = max(1, round(MAX_BATCH_SECONDS * model.sample_rate) // length)
    embeddings = []
    # Windows are overlapping views of the sound; only one batch is copied at a time.
    all_windows = torch.arange(sounds * per_sound, device=windows.device)
    for index in all_windows.split(per_batch):
        batch = windows[index // per_sound, index % per_sound]
        embeddings.append(model(batch.to(device, torch.float32)).float())
    return torch.cat(embeddings).unflatten(0, (sounds, per_sound))
