"""Makes the clip ids that data sets, files and stores of logits have in common."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from efficientat_plugin.support.plain_text import some_of

# Formats that PyAV reads and libsndfile does not.
CONTAINER_SUFFIXES = (".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".wma")
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".oga", ".aif", ".aiff", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".wave", ".sph", *CONTAINER_SUFFIXES),
)


def youtube_id(name: str) -> str:
    """Returns the bare YouTube id in a file name, without prefix or start time.

    Such a name is an optional ``Y``, 11 characters, an optional ``_`` with a start
    time, and an optional audio suffix. Other names only lose their audio suffix.

    Example
    -------
    >>> youtube_id("Y--PJHxphWEs.mp3"), youtube_id("--PJHxphWEs_30000.flac")
    ('--PJHxphWEs', '--PJHxphWEs')
    """
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in AUDIO_SUFFIXES:
        stem = name
    match = re.fullmatch(r"Y?([\w-]{11})(_[\d._]+)?", stem, flags=re.ASCII)
    return match[1] if match else stem


def is_audio(name: str) -> bool:
    """Whether a file name has the suffix of an audio file.

    Example
    -------
    >>> is_audio("a.WAV"), is_audio("notes.txt")
    (True, False)
    """
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def without_suffix(name: Any) -> str:
    """Returns a file name without its audio suffix, as the id of a clip.

    The id is the same for copies in other formats, and on systems that encode accents
    in another way.

    Example
    -------
    >>> without_suffix("a/1-100032-A-0.wav"), without_suffix(64760)
    ('a/1-100032-A-0', '64760')
    """
    text = unicodedata.normalize("NFC", str(name))
    stem, suffix = os.path.splitext(text)
    return stem if suffix.lower() in AUDIO_SUFFIXES else text


def ids_of_files(names: Iterable[str]) -> list[str]:
    """Returns the ids that every reader gives files, by their paths in the data folder.

    Paths have slashes; those that differ only in their suffix keep it.

    Example
    -------
    >>> ids_of_files(["dog/a.wav", "b_1.mp3", "c.wav", "c.mp3", "dog/a.wav"])
    ['dog/a', 'b_1', 'c.wav', 'c.mp3', 'dog/a']
    """
    names = list(names)
    count = Counter(without_suffix(name) for name in {*names})
    return [
        stem if count[stem] == 1 else unicodedata.normalize("NFC", name)
        for name, stem in ((name, without_suffix(name)) for name in names)
    ]


def unique_ids(choices: Iterable[Sequence[str]], source: str) -> list[str]:
    """Returns the first of several lists of ids in which each clip has its own id.

    Raises
    ------
    ValueError
        If there is none.
    """
    twice: Mapping[str, int] = {}
    for ids in choices:
        if len(set(ids)) == len(ids) and all(ids):
            return list(ids)
        twice = twice or {name: n for name, n in Counter(ids).items() if n > 1}
    some = some_of(f"{name} ({n})" for name, n in twice.items())
    raise ValueError(
        f"{source} has repeated or empty clip ids: {some}; choose a column of unique "
        "ids with id_column"
    )
