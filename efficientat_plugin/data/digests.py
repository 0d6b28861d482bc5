"""Computes digests that tell one set of clips from another; decodes nothing."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

NUM_DIGESTED = 8  # clips whose sound is digested
HEAD_BYTES = 1 << 20  # of each file


def digest_of_clips(
    clip_ids: Iterable[Any],
    labels: Iterable[Iterable[Any] | None],
    sounds: Iterable[Any] = (),
) -> str:
    """Computes the digest of a set of clips: of ids, labels, and some of the sound.

    Arguments
    ---------
    clip_ids : Iterable
        In training order.
    labels : Iterable
        Labels of each clip.
    sounds : Iterable
        From ``sounds_of``.

    Returns
    -------
    str

    Example
    -------
    >>> digest_of_clips(["a", "b"], [["dog"], None])
    '2 clips (ids 911169dd, labels 184426dc, sound e3b0c442)'
    """
    by_id, by_label, by_sound = (hashlib.sha256() for _ in range(3))
    count = 0
    for clip_id, classes in zip(clip_ids, labels, strict=True):
        count += 1
        by_id.update(f"{clip_id}\n".encode(errors="surrogatepass"))
        text = "\t".join(map(str, classes or ()))
        by_label.update(f"{text}\n".encode(errors="surrogatepass"))
    for sound in sounds:
        by_sound.update(sound)
    ids, kinds, audio = (d.hexdigest()[:8] for d in (by_id, by_label, by_sound))
    return f"{count} clips (ids {ids}, labels {kinds}, sound {audio})"


def sounds_of(rows: "Sequence[Mapping[str, Any]] | datasets.Dataset") -> list[bytes]:
    """Computes digests of the files of a few clips, spread over the rows.

    They reveal other sounds under the same names. Each covers the size and the first
    megabyte of a file; nothing is decoded.

    Arguments
    ---------
    rows : datasets.Dataset or Sequence
        Undecoded, from ``load_rows`` or ``read_table``.

    Returns
    -------
    list of bytes

    Example
    -------
    >>> len(sounds_of([{"audio": {"bytes": b"RIFF"}}] * 100))
    8
    """
    count = len(rows)
    places = sorted(
        {number * count // NUM_DIGESTED for number in range(NUM_DIGESTED)}
        if count
        else ()
    )
    return [_digest_of_row(rows[place]) for place in places]


def _digest_of_row(row: Mapping[str, Any]) -> bytes:
    digest = _digest_of_file(row["audio"])
    times = row.get("start"), row.get("end")
    if times == (None, None):
        return digest
    return hashlib.sha256(digest + f"{times}".encode()).digest()


def _digest_of_file(audio: Any) -> bytes:
    content: Any = audio.get("bytes") if isinstance(audio, Mapping) else audio
    path: Any = audio.get("path") if isinstance(audio, Mapping) else audio
    if isinstance(content, bytes | bytearray):
        size, head = len(content), bytes(content[:HEAD_BYTES])
    else:
        try:
            with open(path, "rb") as file:
                size, head = os.fstat(file.fileno()).st_size, file.read(HEAD_BYTES)
        except (OSError, TypeError):  # unreadable clips are reported elsewhere
            size, head = 0, b""
    return hashlib.sha256(f"{size}\n".encode() + head).digest()
