"""Starts the backbone of a FrameMN from a tagger."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from efficientat_plugin.pretrained.description import locate
from efficientat_plugin.pretrained.frame_architecture import BACKBONE, frame_names
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.students.frame_mn import FrameMN
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
