"""Finds the sounds below a folder, with one walk for every reader and command."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

# Folders that operating systems and their tools create, besides names that begin with
# ".". A file "._a.mp3" holds metadata of macOS about a.mp3, and no sound.
HIDDEN = (
    *("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"),
    "lost+found",
)
NAMED = 5  # kinds of files that are listed


def walk_sounds(
    folder: str | Path, on_fault: Callable[[Path, str], None] | None = None
) -> list[str]:
    """Finds the sounds below a folder, at any depth, by their suffixes.

    Hidden files and folders are skipped. Links to folders are followed, but each folder
    is visited once, and under its own name if it is below ``folder``. What is skipped
    is counted and logged.

    Arguments
    ---------
    folder : str or Path
    on_fault : callable or None
        Called with the path of each folder that cannot be read, and of each sound whose
        name is not UTF-8, and the reason. None: the former is refused, the latter are
        skipped with a warning.

    Returns
    -------
    list of str
        Names relative to ``folder``, with "/" as separator, sorted as paths: folder by
        folder.

    Raises
    ------
    PermissionError
        If a folder cannot be read, without ``on_fault``.

    Example
    -------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.MP3", "._a.MP3", "notes.txt"):
    ...     (folder / name).touch()
    >>> walk_sounds(folder)
    ['a.MP3']
    """

    def refuse(error: OSError) -> None:
        if on_fault is None:
            raise PermissionError(
                f"{error.filename} cannot be read ({error.strerror}); make it readable "
                "or move it away"
            ) from error
        on_fault(Path(error.filename), str(error.strerror))

    sounds, not_utf8, others, hidden = [], [], Counter[str](), 0
    for place, folders, files in _places(str(folder), refuse):
        below = Path(place).relative_to(folder).as_posix() + "/"
        below = "" if below == "./" else below
        hidden += sum(map(is_hidden, folders))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            is_sound = suffix in AUDIO_SUFFIXES
            if is_hidden(name):
                hidden += is_sound
            elif not is_sound:
                others[suffix or name] += 1
            elif _is_utf8(below + name):
                sounds.append(below + name)
            elif on_fault is None:
                not_utf8.append(below + name)
            else:
                on_fault(Path(place) / name, "its name is not UTF-8; rename it")
    if skipped := _in_words(others, hidden, sorted(not_utf8)):
        level = logging.WARNING if not_utf8 else logging.INFO
        logger.log(level, "%s: skipped %s", shown(folder), skipped)
    return sorted(sounds, key=lambda name: name.replace("/", "\0"))


def _in_words(others: Counter[str], hidden: int, not_utf8: list[str]) -> str:
    """Describes what is skipped: files by suffix, hidden ones, and odd names."""
    parts = []
    if count := others.total():
        counts = sorted(others.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{name} ({n})" for name, n in counts]
        files = "1 file that is" if count == 1 else f"{count} files that are"
        parts.append(f"{files} no sound: {some_of(kinds, NAMED)}")
    if hidden:
        kind = "file or folder" if hidden == 1 else "files and folders"
        parts.append(f"{hidden} hidden {kind}")
    if not_utf8:
        whose = "whose name is" if len(not_utf8) == 1 else "whose names are"
        parts.append(
            f"{len(not_utf8)} {whose} not UTF-8, as those in tables are: "
            f"{some_of(not_utf8)}; rename them to use them"
        )
    return "; ".join(parts)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden.

    Example
    -------
    >>> is_hidden("._a.wav"), is_hidden("a.wav")
    (True, False)
    """
    return name.startswith(".") or name in HIDDEN


def _places(
    folder: str, onerror: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks as ``os.walk`` does, and then through links to folders, too."""
    waiting, visited = [folder], set[str]()
    while waiting:
        for place, folders, files in os.walk(waiting.pop(0), onerror=onerror):
            real = os.path.realpath(place)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            yield place, list(folders), files
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            paths = (os.path.join(place, name) for name in folders)
            waiting += [path for path in paths if os.path.islink(path)]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
