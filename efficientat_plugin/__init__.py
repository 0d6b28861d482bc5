"""Small, fast audio-tagging CNNs for SpeechBrain, and the distillation behind them.

A file is a stage, a folder is a slot whose members are interchangeable::

    row -----data----> waveform --features--> log-mel --students--> StudentOutput
     clip_id            [B, N]               [B, 1, F, T]               |    \\
       \\--teachers--> TeacherTarget(logits, known) --> losses --> brain --> metrics

``data.folders`` finds sounds, ``data.layouts`` what their folders and tables mean, and
``data.opened`` opens them. ``data.preparation`` writes rows of any source anew, as
shards that read quickly.
``launch`` starts a recipe, ``interruptions`` end it; ``run_folder`` refuses the folder
of another run, and ``differences`` names its settings. ``console`` lets people see
what is logged; ``train_log`` and ``report`` are what a run leaves to read.

What is trained is used by ``inference`` (files and ``streams``, of which it says
``tags``, by ``hearing``; ``cli`` on the command line), ``encoders`` and
``classifiers`` (SpeechBrain's slots), ``embeddings`` and ``hear``; ``finetuning`` and
``probe`` go on from weights, ``mutual`` trains two students at once, ``model_folder``
keeps the result with its ``model_card``, ``evaluation`` and ``agreement`` judge it,
``complexity`` tells what it costs. ``described`` finds out what weights are: by name,
model folder or checkpoint; ``model_yaml`` reads the folder of a stranger,
``pickles`` looks through what is then unpickled, ``limits`` says what nobody has, and
``plain_text`` shows names that strangers gave.

``export`` writes it as a file that runs in ``runtime`` without torch; ``tagging`` is
what both taggers share.

Whatever ``load_teacher`` loads can teach: a PaSST, which is a student as well, any
other student, an AST of the hub; each hears waveforms through its own front end.

Between stages travel the named tuples of ``contracts``. Axes: **B** batch,
**N** samples, **F** mel bins, **T** mel frames, **C** channels, **K** classes,
**D** embedding. SpeechBrain's features are ``[B, T, F]``; a student takes
``[B, 1, F, T]``.

Names below are imported when they are first used, so importing the package loads
neither torch nor datasets.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AudioTagger": "inference",
    "Clips": "data.clips",
    "DistillationBrain": "brain",
    "DistillationLoss": "losses",
    "DyMN": "students.dymn",
    "LayerEmbedding": "embeddings",
    "LogMel": "features",
    "LogitsStore": "teachers.store",
    "MN": "students.mn",
    "SpecMask": "features",
    "StudentEncoder": "encoders",
    "StudentOutput": "contracts",
    "TaggingStats": "metrics",
    "inference_form": "students.inference_form",
    "list_students": "students.published",
    "list_teachers": "teachers.published_passt",
    "load_encoder": "encoders",
    "load_rows": "data.rows",
    "load_student": "students.weights",
    "load_teacher": "teachers.weights",
    "read_table": "data.tables",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
