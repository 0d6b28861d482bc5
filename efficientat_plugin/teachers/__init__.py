"""Teachers: anything that computes a ``TeacherTarget`` for a batch of clips."""

from typing import Any

from efficientat_plugin import moved_module


def __getattr__(name: str) -> Any:
    return moved_module(__name__, name)
