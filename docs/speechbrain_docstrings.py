"""Lets mkdocstrings read docstrings in SpeechBrain's form.

It is numpydoc's form, but for the names of two sections.
"""

import re
from typing import Any

import griffe

NAMES = {"Arguments": "Parameters", "Example": "Examples"}


class SpeechBrainDocstrings(griffe.Extension):
    """Renames sections before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Rewrites the docstring of a class, function or module."""
        if obj.docstring is None:
            return
        for ours, theirs in NAMES.items():
            underlined = rf"^{ours}\n-{{3,}}$"
            heading = f"{theirs}\n{'-' * len(theirs)}"
            text = obj.docstring.value
            obj.docstring.value = re.sub(underlined, heading, text, flags=re.M)
