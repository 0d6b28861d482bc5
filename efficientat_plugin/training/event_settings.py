"""Settings of a detector's training that the data decides: the option "auto"."""

from collections.abc import Mapping
from typing import Any

from efficientat_plugin.data.events.event_reader import EventClips
from efficientat_plugin.data.labelled import runs_of
from efficientat_plugin.data.summary import fitting_seconds
from efficientat_plugin.pretrained.backbone import is_detector
from efficientat_plugin.training.finetuning import plan_epochs

LR_FROM_DETECTOR, LR_FROM_TAGGER = 0.0003, 0.003


def decide_settings(hparams: Mapping[str, Any], clips: EventClips) -> dict[str, Any]:
    """Decides length of clips, epochs, share of validation clips and learning rate.

    They are those of fine-tuning a tagger without a probe: see `fitting_seconds` and
    `plan_epochs`. With few clips per class, a quarter of them is held out, since
    thresholds are chosen on them as well. The rate depends on what training starts
    from: the convolutions of a tagger have to adapt to other strides.

    Arguments
    ---------
    hparams : mapping
        Of the run: ``clip``, ``number_of_epochs``, ``opt_class``, ``seed``,
        ``splitting``, ``start_from`` and ``train_loader``.
    clips : EventClips

    Returns
    -------
    dict
        Values of the options that are "auto".

    Raises
    ------
    ValueError
        If clips cannot be split, or none can be opened.

    Example
    -------
    >>> from functools import partial
    >>> import datasets
    >>> from efficientat_plugin.data.labels import LabelTable
    >>> ids = [str(number) for number in range(100)]
    >>> rows = datasets.Dataset.from_dict({"video_id": ids, "labels": [["x"]] * 100})
    >>> seconds = dict.fromkeys(ids, 5.0)
    >>> known = EventClips(rows, LabelTable(["x"], ["x"]), {}, {*ids}, seconds)
    >>> splitting = {"split": "auto", "fold": None, "test_share": 0.2}
    >>> hparams = {"splitting": splitting | {"valid_share": "auto"}, "seed": 0}
    >>> hparams |= {"clip": {"clip_seconds": "auto"}, "number_of_epochs": "auto"}
    >>> hparams |= {"opt_class": partial(dict, lr=0.1), "start_from": {}}
    >>> decide_settings(hparams | {"train_loader": {"batch_size": 16}}, known)
    {'clip_seconds': 5.0, 'number_of_epochs': 80, 'valid_share': 0.15}
    """
    decided: dict[str, Any] = {}
    splitting, begin = hparams["splitting"], hparams["start_from"]
    if hparams["opt_class"].keywords["lr"] == "auto":
        whole = is_detector(begin["pretrained"], begin["pretrained_folder"])
        decided["lr"] = LR_FROM_DETECTOR if whole else LR_FROM_TAGGER
    if hparams["clip"]["clip_seconds"] == "auto":
        decided["clip_seconds"] = fitting_seconds([*clips.seconds.values()])
    if "auto" not in (hparams["number_of_epochs"], splitting["valid_share"]):
        return decided
    split, *_ = runs_of(
        clips.rows_to_split(),
        splitting["split"],
        splitting["fold"],
        0.0,
        splitting["test_share"],
        hparams["seed"],
    ).values()
    plan = plan_epochs(
        len(split.train), len(clips.labels), hparams["train_loader"]["batch_size"]
    )
    for name, value, given in (
        ("number_of_epochs", plan.epochs, hparams["number_of_epochs"]),
        ("valid_share", plan.valid_share, splitting["valid_share"]),
    ):
        if given == "auto":
            decided[name] = value
    return decided
