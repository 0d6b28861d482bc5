"""Loads teachers with their weights: published ones by name, and users' own files.

As with students, either all weights are loaded or the import is refused.
"""

import inspect
import logging
import os
from pathlib import Path
from typing import Any

from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.described import (
    describe,
    find_model_folder,
)
from efficientat_plugin.pretrained.download import read_state
from efficientat_plugin.pretrained.passt_weights import (
    AST_CONFIG,
    WEIGHT_FILES,
    check_overrides,
    network_of,
    nothing_called,
)
from efficientat_plugin.pretrained.published import PUBLISHED, find_published
from efficientat_plugin.pretrained.published_passt import (
    TEACHERS,
)
from efficientat_plugin.students.ensemble import WaveformStudent
from efficientat_plugin.support.hub import NAME
from efficientat_plugin.teachers.ast_hub import ASTTeacher, load_ast

logger = logging.getLogger(__name__)


def names_ast(source: str | Path) -> bool:
    """Whether a source is an AST: a folder with its config, or a name on the hub.

    Example
    -------
    >>> names_ast("MIT/ast-finetuned-audioset-10-10-0.4593"), names_ast("mn10_as")
    (True, False)
    """
    if os.path.isdir(source):
        return os.path.isfile(os.path.join(source, AST_CONFIG))
    named = NAME.fullmatch(str(source))
    is_file = Path(source).suffix in WEIGHT_FILES or os.path.isfile(source)
    return named is not None and not is_file


def load_teacher(
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
    **overrides: Any,
) -> WaveformStudent | ASTTeacher:
    """Loads a teacher with its weights and its front end: [B, N] -> StudentOutput.

    Arguments
    ---------
    source : str or Path
        A name of `list_teachers` or `list_students`, downloaded once; a model folder
        or its run folder; a file with the state dict of a PaSST or a student; or an
        AST, by its name on the hub or as a folder that ``save_pretrained`` wrote (see
        `load_ast`). The options of a file are known if it has a published name or is
        in a model folder or a run's checkpoints. Otherwise they are inferred from
        names and shapes, and the front end must be stated.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder, and the
        hub's own.
    base_url : str or None
        URL of a folder with all the files; None: the environment variable
        EFFICIENTAT_BASE_URL, else the published releases.
    **overrides
        Arguments of the network, of `LogMel` or of `load_ast` that the source does not
        determine or that should differ, e.g. ``patchout_time``. A file that nothing
        describes needs ``n_mels`` and ``hop_length``; a PaSST also ``time_stride``, or
        ``clip_seconds`` of the clips that it was trained on.

    Returns
    -------
    WaveformStudent or ASTTeacher
        In evaluation mode; takes waveforms at its ``sample_rate``.

    Raises
    ------
    ImportError
        For an AST without transformers.
    OSError
        If a download fails or the file does not exist.
    ValueError
        For an unknown name or option, a file that is not a state dict, or one that
        does not fit.

    Example
    -------
    >>> teacher = load_teacher("passt_s_swa_p16_128_ap476")  # doctest: +SKIP
    >>> teacher(torch.zeros(2, 320000)).logits.shape  # doctest: +SKIP
    torch.Size([2, 527])
    """
    path, found = Path(source), find_model_folder(source)
    if found is None and names_ast(source) and str(source) not in TEACHERS:
        check_overrides(
            overrides, list(inspect.signature(load_ast).parameters)[2:], "an AST"
        )
        return load_ast(source, savedir, **overrides)
    is_published = str(source) in (*TEACHERS, *PUBLISHED)
    if not (is_published or found or path.is_file()):
        raise nothing_called(source, [*TEACHERS, *PUBLISHED])
    entry = find_published(source)
    if entry is not None and entry.trained_on == "ImageNet":
        raise ValueError(
            f"{source} was trained on ImageNet, so its class layer is untrained and "
            "has nothing to teach; use a model whose name ends with _as"
        )
    known = describe(found or source, savedir, base_url)
    student = network_of(known, read_state(known.path), overrides)
    teacher = WaveformStudent(LogMel(**student.front_end), student).eval()
    if known.yaml is not None:
        teacher.labels, teacher.target = known.labels, known.target
    return teacher
