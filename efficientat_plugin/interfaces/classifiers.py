"""Provides what SpeechBrain's `EncoderClassifier` needs besides an encoder.

`SoxrNormalizer` resamples files, `StudentClassifier` follows the encoder, and
`label_encoder` names the classes. `EncoderClassifier` scores each sound as a whole:
unlike `AudioTagger`, it neither lengthens short sounds nor cuts long ones into windows.
"""

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from torch import Tensor, nn

from efficientat_plugin.contracts import TARGETS
from efficientat_plugin.data.decoding import Resampler
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.students.heads import classifies_embeddings
from efficientat_plugin.students.student import Student, check_choice


class SoxrNormalizer:
    """Converts audio to mono at the student's rate, as training does.

    Use it as ``audio_normalizer``. SpeechBrain's own has a short filter: resampling a
    16 kHz file leaves images above 8 kHz, where training data had silence.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the student, Hz.

    Shape
    -----
    audio : [N] or [N, channels]
    mono : [N at the student's rate]

    Example
    -------
    >>> SoxrNormalizer(32000)(torch.zeros(44100, 2), 44100).shape
    torch.Size([32000])
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate

    def __call__(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Converts audio of any rate and number of channels to [N]."""
        mono = audio if audio.ndim == 1 else audio.mean(1)
        resampler = Resampler(sample_rate, self.sample_rate)
        blocks = [resampler.feed(mono.cpu().numpy()), resampler.finish()]
        return torch.cat([torch.from_numpy(block) for block in blocks]).to(audio.device)


class StudentClassifier(nn.Module):
    """A student's head for the slot ``classifier``, after its `StudentEncoder`.

    An embedding is passed to the head as maps of one band and one frame. This gives
    the same result, because heads average over the maps; the fully convolutional one
    is linear in evaluation, so averaging first changes nothing.

    It returns log posteriors, as SpeechBrain's `EncoderClassifier` documents: their
    ``exp()`` are the probabilities of `AudioTagger`.

    Arguments
    ---------
    student : Student
        Its head is shared, not copied.
    target : str
        "multilabel" (log-sigmoid) or "multiclass" (log-softmax).

    Shape
    -----
    embedding : [B, 1, D]
    log posteriors : [B, 1, K]

    Raises
    ------
    ValueError
        For an unknown target, and a head that needs frames.

    Example
    -------
    >>> from efficientat_plugin import MN
    >>> classifier = StudentClassifier(MN(5, width=0.1), "multiclass").eval()
    >>> classifier(torch.zeros(2, 1, 96)).exp().sum(2)
    tensor([[1.0000],
            [1.0000]], grad_fn=...)
    """

    def __init__(self, student: Student, target: str) -> None:
        super().__init__()
        check_choice("target", target, TARGETS)
        if not classifies_embeddings(student):
            raise ValueError(
                f"a {type(student.classifier).__name__} head needs frames, but an "
                "embedding has none; use AudioTagger, which runs the whole student"
            )
        self.head = student.classifier
        self.target = target

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, 1, D] -> [B, 1, K]"""
        logits = self.head(embedding.transpose(1, 2).unsqueeze(3))  # of [B, D, 1, 1]
        if self.target == "multilabel":
            return nn.functional.logsigmoid(logits).unsqueeze(1)
        return logits.log_softmax(dim=-1).unsqueeze(1)


def label_encoder(labels: LabelTable) -> CategoricalEncoder:
    """Creates SpeechBrain's label encoder from a table, without a file.

    Arguments
    ---------
    labels : LabelTable

    Returns
    -------
    CategoricalEncoder
        Encodes the names, or the ids if two classes share a name.

    Example
    -------
    >>> encoder = label_encoder(LabelTable(["/m/0bt9lr", "/m/01yrx"], ["Dog", "Cat"]))
    >>> encoder.decode_torch(torch.tensor([1, 0]))
    ['Cat', 'Dog']
    """
    unique = len(set(labels.names)) == len(labels)
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels.names if unique else labels.mids)
    encoder.expect_len(len(labels))
    return encoder
