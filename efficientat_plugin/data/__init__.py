"""Turns the rows of a data set into batches of waveforms, labels and clip ids."""

from typing import Any

from efficientat_plugin import moved_module


def __getattr__(name: str) -> Any:
    return moved_module(__name__, name)
