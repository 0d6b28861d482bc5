"""Starts a detector from a published one, or its backbone from a tagger."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.pretrained.description import describe, locate
from efficientat_plugin.pretrained.frame_architecture import (
    BACKBONE,
    frame_names,
    is_frame_state,
)
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)


def load_backbone(
    student: FrameMN,
    source: str | Path | Mapping[str, Tensor],
    savedir: str | Path | None = None,
    base_url: str | None = None,
) -> list[str]:
    """Starts the convolutions of a FrameMN from those of an MN or another FrameMN.

    Entries are taken where name and shape agree, which is everywhere if the widths do.
    Heads and sequence model stay as they are. How many entries were taken is logged.

    Arguments
    ---------
    student : FrameMN
    source : str or Path or mapping
        A name of `list_students`, e.g. "mn10_im" or "fmn10_weak", downloaded once; a
        model folder; a file; or a state dict.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        URL of the files; see `fetch`.

    Returns
    -------
    list of str
        Entries of the backbone that were not taken.

    Raises
    ------
    OSError
        If a download fails or the file does not exist.
    ValueError
        For an unknown name, a file that is not a state dict, or one of which nothing
        fits.

    Example
    -------
    >>> from efficientat_plugin import MN
    >>> load_backbone(FrameMN(10, width=0.1), MN(width=0.1).state_dict())
    []
    """
    if isinstance(source, Mapping):
        origin, state = "the state dict", frame_names(source)
    else:
        origin = str(source)
        state = frame_names(read_state(locate(source, savedir, base_url).path))
    own = {
        name: value
        for name, value in student.state_dict().items()
        if name.startswith(BACKBONE)
    }
    fitting = {
        name: state[name]
        for name, value in own.items()
        if name in state and state[name].shape == value.shape
    }
    if not any(value.ndim > 1 for value in fitting.values()):
        raise ValueError(
            f"{origin} has no convolution that fits the backbone of a "
            f"{student.describe()}; give an MN or a FrameMN of the same width"
        )
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    left = [name for name in own if name not in fitting]
    logger.info(
        "%d of the %d entries of the backbone were taken from %s",
        len(fitting),
        len(own),
        origin,
    )
    if left:
        logger.warning(
            "%d of the %d entries of the backbone stay as they were, since %s has none "
            "of their names and shapes: %s and others",
            len(left),
            len(own),
            origin,
            shown(left[0]),
        )
    return left


def is_detector(source: str | Path, savedir: str | Path | None = None) -> bool:
    """Whether a source has the weights of a `FrameMN` or a `FramePaSST`.

    Arguments
    ---------
    source, savedir
        As in `start_detector`.

    Returns
    -------
    bool

    Raises
    ------
    OSError, ValueError
        As in `describe`, and for a file that is not a state dict.
    """
    return is_frame_state(read_state(locate(source, savedir).path))


def detects(
    source: str | Path, labels: LabelTable, savedir: str | Path | None = None
) -> bool:
    """Whether a source is a detector of these very classes.

    Arguments
    ---------
    source, labels, savedir
        As in `start_detector`.

    Returns
    -------
    bool

    Raises
    ------
    OSError, ValueError
        As in `is_detector`.
    """
    known = describe(source, savedir)
    same = known.labels is not None and known.labels.mids == labels.mids
    return same and is_detector(source, savedir)


def start_detector(
    source: str | Path,
    labels: LabelTable,
    savedir: str | Path | None = None,
    front_end: Mapping[str, Any] | None = None,
    **options: Any,
) -> FrameStudent:
    """Starts a detector of own classes from a published detector or tagger.

    A `FrameMN` or `FramePaSST` is taken whole. Its class layers start anew unless it
    was trained on these very classes. Of an `MN`, the convolutions are taken; their
    strides differ in a `FrameMN`, to which training has to adapt them, and a sequence
    model and class layers are added.

    Arguments
    ---------
    source : str or Path
        A name of `list_students`, e.g. "fmn10_tf_256_strong" or "mn04_as", downloaded
        once; a model folder; or a file.
    labels : LabelTable
        The K classes to detect.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    front_end : mapping or None
        Arguments of `LogMel` that a file of weights does not state, or that should
        differ.
    **options
        Arguments of the `FrameMN` that is built for an `MN`, such as
        ``sequence_model``. Of a detector, its own are kept.

    Returns
    -------
    FrameStudent
        With the ``front_end`` of the source.

    Raises
    ------
    OSError, ValueError
        As in `load_student`; and for a student that is neither.

    Example
    -------
    >>> labels = LabelTable(["dog"], ["dog"])
    >>> start_detector("mn04_as", labels, sequence_dim=104)  # doctest: +SKIP
    FrameMN(...)
    """
    stated = front_end or {}
    started = load_student(source, None, savedir, **stated)
    if isinstance(started, FrameStudent):
        if not detects(source, labels, savedir):
            started = load_student(source, len(labels), savedir, **stated)
            assert isinstance(started, FrameStudent)
            started.class_layer().reset_parameters()
            started.strong_head.reset_parameters()
            logger.info("The class layers start anew, for %d classes", len(labels))
        return started
    if not isinstance(started, MN):
        raise ValueError(
            f"{source} is a {started.describe()}, from which no detector can start; "
            "give a FrameMN, a FramePaSST or an MN"
        )
    width = started.options["width"]
    student = FrameMN(num_classes=len(labels), width=width, **options)
    load_backbone(student, started.state_dict())
    student.front_end = dict(started.front_end)
    return student
