"""Students: small networks with one contract.

``forward([B, 1, F, T]) -> StudentOutput``; a student is built without touching
disk or network, and ``pretrained`` fills it with weights.
"""

from typing import Any

from efficientat_plugin import moved_module


def __getattr__(name: str) -> Any:
    return moved_module(__name__, name)
