"""Exports a student to a LiteRT file, for Android and similar; clips of one length."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export.assembly import facts_of
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.export.golden import write_golden
from efficientat_plugin.export.onnx_file import Exported
from efficientat_plugin.export.parity import Parity, compared, judge
from efficientat_plugin.export.source import Source, find_source
from efficientat_plugin.export.writing import check_path, written_together
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    LOG_MEL,
    LOGITS,
    PROBABILITIES,
)
from efficientat_plugin.runtime.tagger import as_probabilities
from efficientat_plugin.students.student import Student

NUM_SOUNDS = 3


class _OfLogMel(nn.Module):
    """A student that takes [1, F, T]."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        logits, embedding = self.student(log_mel.unsqueeze(1))
        return logits, embedding


def export_litert(
    source: str | Path,
    path: str | Path,
    labels: LabelTable | None = None,
    savedir: str | Path | None = None,
    **stated: Any,
) -> Exported:
    """Exports a student in float32, from the log-mel of one clip to its logits.

    The file takes clips of the length that the model was trained on, one at a time,
    and also returns the embedding. ``NAME.json`` holds the metadata that an ONNX file
    would contain.

    Arguments
    ---------
    source : str or Path
        A name, a weights file or a model folder.
    path : str or Path
        The file to write, which ends in .tflite.
    labels : LabelTable or None
        Classes of a weights file that does not contain them.
    savedir : str, Path or None
        Folder for downloads.
    **stated
        Other settings that such a file does not contain; see `find_source`.

    Returns
    -------
    Exported

    Raises
    ------
    ImportError
        If litert-torch is not installed.
    OSError, ValueError
        As ``export_onnx``.
    """
    path = Path(path)
    check_path(path, ".tflite")
    found = find_source(source, labels, savedir, **stated)
    if found.frame_samples is not None:
        raise ValueError(
            f"{source} scores frames, which LiteRT files do not; export it to ONNX"
        )
    converted = _converted(found)
    parity = _checked(converted, found)
    with written_together(path) as folder:
        converted.export(str(folder / path.name))
        num_frames = found.log_mel.num_frames(found.clip_samples)  # it takes no others
        facts = facts_of(found, "fp32", "out")._replace(num_frames=num_frames)
        texts = {name: json.loads(text) for name, text in facts.as_texts().items()}
        metadata = folder / f"{path.stem}.json"
        metadata.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
        others = [metadata, *write_golden(folder, path.stem, found)]
    beside = tuple(path.parent / other.name for other in others)
    return Exported(path, path.stat().st_size, parity, 0, beside)


def _converted(source: Source) -> Any:
    import litert_torch

    frames = source.log_mel.num_frames(source.clip_samples)
    example = torch.zeros(1, source.log_mel.n_mels, frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about itself
        return litert_torch.convert(_OfLogMel(source.model.student), (example,))


def _checked(converted: Any, source: Source) -> Parity:
    """Compares with PyTorch as ``check_parity``, in LiteRT's interpreter."""
    rate, num_samples = source.log_mel.sample_rate, source.clip_samples
    expected, found = [], []
    for number in range(NUM_SOUNDS):
        expected.append(source.outputs(synthesised(num_samples, rate, number)[None]))
        log_mel = torch.from_numpy(expected[-1][LOG_MEL])
        logits, embedding = (np.asarray(value) for value in converted(log_mel))
        probabilities = as_probabilities(logits, source.model.target)
        found.append(
            {LOGITS: logits, EMBEDDING: embedding, PROBABILITIES: probabilities}
        )
    parity = compared(expected, found)._replace(backends=("litert",))
    judge(parity, "fp32", source.name)
    return parity
