"""The options that say how scores over time become events."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from efficientat_plugin.cli.arguments import (
    add_classes,
    duration,
    places_of_classes,
    probability,
    ratio,
    seconds,
)

if TYPE_CHECKING:
    from efficientat_plugin.data.labels import LabelTable
    from efficientat_plugin.tagging.base import SoundTagger

# Options whose defaults are among the settings that a resumed run compares
NAMED = ("median_seconds", "min_seconds", "max_gap_seconds")
NamedThreshold = tuple[str | None, float]  # None: of all classes without a name


def add_event_options(parser: argparse.ArgumentParser) -> None:
    """Adds the fields of `EventOptions`, and the windows that are scored."""
    group = parser.add_argument_group("what is an event")
    add_classes(group)
    for option, text in (
        (
            "--threshold",
            "minimum probability that an event reaches, of all classes or of one: "
            "either may be given, or both; repeat it for more classes. Without a "
            "number for all, classes that are not named have no events (default: the "
            "thresholds stored with the model, else 0.5)",
        ),
        (
            "--off-threshold",
            "probability down to which an event lasts on both sides, at most the "
            "threshold (default: the threshold)",
        ),
    ):
        group.add_argument(
            option,
            action="append",
            type=named_threshold,
            metavar="P|NAME=P",
            help=text,
        )
    for option, default, text in (
        ("--median-seconds", "0.36 s", "length of the median filter over the scores"),
        ("--min-seconds", "0 s", "leave out shorter events"),
        ("--max-gap-seconds", "0 s", "merge events of a class across gaps up to this"),
        ("--max-seconds", "any", "do not merge events into a longer one than this"),
    ):
        group.add_argument(
            option,
            type=duration,
            metavar="S",
            help=f"{text} (default: the model's, else {default})",
        )
    _add_box_options(parser)
    group = parser.add_argument_group("what is scored at a time")
    group.add_argument(
        "--window-seconds",
        type=seconds,
        metavar="S",
        help="length of the pieces of a sound (default: that of the clips the model "
        "was trained on; of a model that scores clips and not frames, 2 s)",
    )
    group.add_argument(
        "--hop-seconds",
        type=seconds,
        metavar="S",
        help="time between the starts of pieces, at most their length (default: 0.8 "
        "of it; of a model that scores clips, 0.25 s, to which it tells times)",
    )


def _add_box_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bounding boxes")
    group.add_argument(
        "--boxes",
        action="store_true",
        help="find events whose ends do not depend on the threshold, which the mean of "
        "their scores exceeds; without a median filter",
    )
    for option, read, unit, text in (
        (
            "--box-step-seconds",
            seconds,
            "S",
            "how much of the scores around a place decides whether an event begins or "
            "ends there (default: 0.48 s)",
        ),
        (
            "--box-merge-difference",
            probability,
            "P",
            "merge events of a class if the scores between them fall by less than this "
            "(default: any)",
        ),
        (
            "--box-merge-ratio",
            ratio,
            "R",
            "and if those of the events are less than this many times as high "
            "(default: 2; with a difference, any)",
        ),
    ):
        group.add_argument(option, type=read, metavar=unit, help=text)


def named_threshold(text: str) -> NamedThreshold:
    """Parses a probability, or that of a class.

    Example
    -------
    >>> named_threshold("0.3"), named_threshold("Dog=0.2")
    ((None, 0.3), ('Dog', 0.2))
    """
    name, sign, number = text.rpartition("=")
    if sign and not name.strip():
        raise argparse.ArgumentTypeError(
            f"{text!r} is given; give NAME=PROBABILITY or a probability"
        )
    return name.strip() or None, probability(number)


def event_options_of(
    arguments: argparse.Namespace, tagger: "SoundTagger"
) -> dict[str, Any]:
    """Returns the options as arguments of ``SoundTagger.event_stream``.

    They are JSON; classes are given by their ids. Those that are stored with the model
    are among them, as results depend on them.

    Raises
    ------
    ValueError
        For classes that the model lacks, or that have no threshold.
    """
    from efficientat_plugin.tagging.event_finder import EventOptions

    labels = tagger.labels
    places = places_of_classes(arguments, labels)
    threshold = _by_id(arguments.threshold or [], labels)
    if threshold is None:
        threshold = tagger.event_options.get("threshold", 0.5)
    off_threshold = _by_id(arguments.off_threshold or [], labels)
    if places is not None and isinstance(threshold, dict):
        for place in places:
            if labels.mids[place] not in threshold:
                name = labels.names[place]
                raise ValueError(
                    f"the class {name} has no threshold; give --threshold '{name}=P', "
                    "or --threshold P for all classes that have none of their own"
                )
    options = {
        name: getattr(arguments, name)
        for name in (
            *("median_seconds", "min_seconds", "max_gap_seconds", "max_seconds"),
            *("window_seconds", "hop_seconds"),
        )
        if getattr(arguments, name) is not None
    }
    options |= _box_options_of(arguments)
    if places is not None:
        options["classes"] = [labels.mids[place] for place in sorted(places)]
    if off_threshold is not None:
        options["off_threshold"] = off_threshold
    defaults = EventOptions._field_defaults
    named = {name: defaults[name] for name in NAMED}
    return named | {**tagger.event_options, **options, "threshold": threshold}


def _box_options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        name: getattr(arguments, name)
        for name in ("box_step_seconds", "box_merge_difference", "box_merge_ratio")
        if getattr(arguments, name) is not None
    }
    if given and not arguments.boxes:
        option = next(iter(given)).replace("_", "-")
        raise ValueError(f"--{option} is an option of boxes; pass --boxes, too")
    if "box_merge_difference" in given:
        given.setdefault("box_merge_ratio", None)
    return {"boxes": True} | given if arguments.boxes else {}


def _by_id(
    given: Iterable[NamedThreshold], labels: "LabelTable"
) -> float | dict[str, float] | None:
    """Returns one threshold, or those by class id; None if none is given."""
    from efficientat_plugin.data.labels import places_of

    of_all: float | None = None
    by_place: dict[int, float] = {}
    for name, value in given:
        if name is None:
            of_all = value
        else:
            # Commas belong to the name, as there is one number
            by_place |= dict.fromkeys(places_of([name], labels), value)
    if not by_place:
        return of_all
    if of_all is not None:
        by_place = dict.fromkeys(range(len(labels)), of_all) | by_place
    return {labels.mids[place]: by_place[place] for place in sorted(by_place)}
