"""The name of a clip: what data sets, files and stores of logits agree on."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from efficientat_plugin.support.plain_text import some_of

# What PyAV reads, and libsndfile does not.
CONTAINER_SUFFIXES = (".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".wma")
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".oga", ".aif", ".aiff", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".wave", ".sph", *CONTAINER_SUFFIXES),
)


def youtube_id(name: str) -> str:
    """The bare YouTube id in a file's name, with or without prefix and start time.

    Arguments
    ---------
    name : str
        ``Y`` or nothing, 11 characters, ``_`` and a start time or nothing, and the
        suffix of a sound file or none. Of other names only the suffix goes.

    Returns
    -------
    clip_id : str

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
    """Whether a file's name ends as that of a sound file.

    Example
    -------
    >>> is_audio("a.WAV"), is_audio("notes.txt")
    (True, False)
    """
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def without_suffix(name: Any) -> str:
    """A file's name as the id of its clip: alike for copies in another format.

    It is also alike on systems that write paths or accents in another way.

    Example
    -------
    >>> without_suffix("a/1-100032-A-0.wav"), without_suffix(64760)
    ('a/1-100032-A-0', '64760')
    """
    text = unicodedata.normalize("NFC", str(name))
    stem, suffix = os.path.splitext(text)
    return stem if suffix.lower() in AUDIO_SUFFIXES else text


def ids_of_files(names: Iterable[str]) -> list[str]:
    """Ids of files, named from the folder of the data on; the same in every reader.

    Arguments
    ---------
    names : Iterable[str]
        Paths with slashes; those that are alike but for their suffix keep it.

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
    """The first of several ways to name clips that names no two alike.

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
        f"{source} names clips more than once, or not at all: {some}; name a column "
        "of ids with id_column"
    )
