"""Students: small networks that share one interface.

``forward([B, 1, F, T]) -> StudentOutput``; a `FrameStudent`, which also scores every
frame, returns a ``FrameOutput``. ``sequence`` holds models over frames. Building a
student accesses neither disk nor network; ``pretrained`` loads weights into it.
"""

from typing import Any

from efficientat_plugin import moved_module


def __getattr__(name: str) -> Any:
    return moved_module(__name__, name)
