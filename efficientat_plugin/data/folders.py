"""Finds the sounds below a folder, with one walk for every reader and command."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

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


class FolderContent(NamedTuple):
    """Lists the files below a folder, by relative names with "/" as separator."""

    sounds: list[str]  # sorted as paths: folder by folder
    others: Counter[str]  # number of other files by suffix, or by name if there is none
    hidden: int  # number of hidden folders and sounds, which are skipped
    not_text: list[str]  # sounds whose names are not UTF-8

    def passed_over(self) -> str:
        """Describes what is skipped, in words; "" if nothing is."""
        parts = []
        if count := self.others.total():
            counts = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
            kinds = [f"{name} ({n})" for name, n in counts]
            files = "1 file that is" if count == 1 else f"{count} files that are"
            parts.append(f"{files} no sound: {some_of(kinds, NAMED)}")
        if self.hidden:
            kind = "file or folder" if self.hidden == 1 else "files and folders"
            parts.append(f"{self.hidden} hidden {kind}")
        if self.not_text:
            whose = "whose name is" if len(self.not_text) == 1 else "whose names are"
            parts.append(
                f"{len(self.not_text)} {whose} not UTF-8, as those in tables are: "
                f"{some_of(self.not_text)}; rename them to use them"
            )
        return "; ".join(parts)


def walk_sounds(
    folder: str | Path, onerror: Callable[[OSError], None] | None = None
) -> FolderContent:
    """Finds the sounds below a folder, at any depth, by their suffixes.

    Hidden files and folders are skipped. Links to folders are followed, but each folder
    is visited once, and under its own name if it is below ``folder``.

    Arguments
    ---------
    folder : str or Path
    onerror : callable or None
        Called with the error of each folder that cannot be read; None: refuse it.

    Returns
    -------
    FolderContent

    Raises
    ------
    PermissionError
        If a folder cannot be read.

    Example
    -------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.MP3", "._a.MP3", "notes.txt"):
    ...     (folder / name).touch()
    >>> content = walk_sounds(folder)
    >>> content.sounds, content.passed_over()
    (['a.MP3'], '1 file that is no sound: .txt (1); 1 hidden file or folder')
    """
    sounds, not_text, others, hidden = [], [], Counter[str](), 0
    for place, folders, files in _places(str(folder), onerror or refuse_folder):
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
            elif _is_text(below + name):
                sounds.append(below + name)
            else:
                not_text.append(below + name)
    sounds.sort(key=lambda name: name.replace("/", "\0"))
    return FolderContent(sounds, others, hidden, sorted(not_text))


def find_sounds_below(folder: str | Path) -> list[str]:
    """Returns the sounds that ``walk_sounds`` finds, and logs what it skips."""
    content = walk_sounds(folder)
    if passed_over := content.passed_over():
        level = logging.WARNING if content.not_text else logging.INFO
        logger.log(level, "%s: skipped %s", shown(folder), passed_over)
    return content.sounds


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden.

    Example
    -------
    >>> is_hidden("._a.wav"), is_hidden("a.wav")
    (True, False)
    """
    return name.startswith(".") or name in HIDDEN


def refuse_folder(error: OSError) -> None:
    """Handles errors of ``os.walk``, which would skip what cannot be read."""
    raise PermissionError(
        f"{error.filename} cannot be read ({error.strerror}); make it readable or move "
        "it away"
    ) from error


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


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
