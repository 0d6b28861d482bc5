"""The name of a clip: what data sets, files and stores of logits agree on."""

import os
import re

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
