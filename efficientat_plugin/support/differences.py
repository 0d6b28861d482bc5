"""Finds the settings in which two runs differ, with both values of each."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from efficientat_plugin.support.plain_text import shown

LONGEST = 60  # characters that are shown of a value


class Difference(NamedTuple):
    """One setting that differs between the run in a folder and another one."""

    name: str  # dotted, such as log_mel.n_mels
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.name} {_in_short(self.there)} there, {_in_short(self.here)} here"


def differences_of(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> list[Difference]:
    """Lists the settings in which two runs differ, in the order of the second one.

    Arguments
    ---------
    there, here : Mapping
        The settings of each run, as plain values.

    Returns
    -------
    list of Difference
        A setting that only one of them has is "not set" in the other.

    Example
    -------
    >>> print(*differences_of({"lr": 0.1, "loss": {"k": 1}}, {"lr": 0.2}), sep="; ")
    lr 0.1 there, 0.2 here; loss.k 1 there, not set here
    """
    absent = object()
    flat_there, flat_here = _flat(there), _flat(here)
    return [
        Difference(
            name, flat_there.get(name, "not set"), flat_here.get(name, "not set")
        )
        for name in {**flat_here, **flat_there}
        if flat_there.get(name, absent) != flat_here.get(name, absent)
    ]


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Returns plain values by dotted name; the value of an object is its class."""
    if not isinstance(settings, Mapping):
        return {name: settings}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith("!"):
            values[name] = key.partition(":")[2] or key
            if isinstance(value, Mapping):
                values |= _flat(value, name)
            elif value not in ("", None):
                values[f"{name}.arguments"] = value
        else:
            values |= _flat(value, f"{name}.{key}" if name else key)
    return values


def _in_short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = shown(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
