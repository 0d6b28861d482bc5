"""Finds the clips that the names of sounds in a table of events mean."""

import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from efficientat_plugin.data.clip_ids import ids_of_files, without_suffix, youtube_id
from efficientat_plugin.support.plain_text import some_of

logger = logging.getLogger(__name__)


def ids_of_clips(
    names: Sequence[str | None], clip_ids: Collection[str] | None, source: str
) -> list[str | None]:
    """Returns the clip id of each name; "" for sounds that are not there."""
    plain = {name: _plain_path(name) for name in dict.fromkeys(names) if name}
    if clip_ids is None:
        own = dict(zip(plain, ids_of_files(plain.values()), strict=True))
    else:
        own = match_clips(plain, clip_ids)
        if plain and not own:
            raise ValueError(
                f"none of the {len(plain)} sounds of {source} "
                f"({some_of(plain, 2)}) is among the {len(clip_ids)} clips "
                f"({some_of(clip_ids, 2)}); name sounds as the clips are named"
            )
    return [own.get(name, "") if name else None for name in names]


def _plain_path(name: str) -> str:
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def match_clips(names: Mapping[str, str], clip_ids: Collection[str]) -> dict[str, str]:
    """Finds the clip that each name of a sound means.

    A name is a clip's id, with or without a suffix; or one of the two paths ends as the
    other, perhaps but for what stands around a YouTube id, and no other path does.

    Arguments
    ---------
    names : mapping
        Paths with slashes, by name.
    clip_ids : collection of str

    Returns
    -------
    dict
        Clip ids by name, without names that mean none.

    Example
    -------
    >>> match_clips({"x": "/data/dog/a.wav", "y": "b.wav"}, ["dog/a", "c"])
    {'x': 'dog/a'}
    """
    exact = {unicodedata.normalize("NFC", str(clip)): str(clip) for clip in clip_ids}
    found = {}
    for name, path in names.items():
        clip = exact.get(path, exact.get(without_suffix(path)))
        if clip is not None:
            found[name] = clip
    for plain in (without_suffix, _video):
        others = {name: plain(names[name]) for name in names if name not in found}
        free = {clip: plain(path) for path, clip in exact.items()}
        for clip in found.values():
            free.pop(clip, None)
        found |= _with_like_ends(others, free)
    return found


def _video(path: str) -> str:
    """Returns a path with the YouTube id in the place of the name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + youtube_id(name)


def _with_like_ends(
    names: Mapping[str, str], clips: Mapping[str, str]
) -> dict[str, str]:
    """Finds pairs of paths of which one ends as the other, and as no other does."""
    by_path: defaultdict[str, set[str]] = defaultdict(set)
    by_tail: defaultdict[str, set[str]] = defaultdict(set)
    for clip, path in clips.items():
        by_path[path].add(clip)
        for tail in _tails(path):
            by_tail[tail].add(clip)
    found = {}
    for name, path in names.items():
        longest = next((tail for tail in _tails(path) if tail in by_path), "")
        meant = by_path.get(longest, set()) | by_tail.get(path, set())
        if len(meant) == 1:
            found[name] = min(meant)
    counts = Counter(found.values())
    return {name: clip for name, clip in found.items() if counts[clip] == 1}


def _tails(path: str) -> list[str]:
    """Returns the ends of a path, the longest first."""
    parts = path.strip("/").split("/")
    return ["/".join(parts[place:]) for place in range(len(parts))]


def videos_of(clips: Sequence[str | None], source: str) -> list[str | None]:
    """Returns the YouTube id of each segment, or its own id if a video has several.

    Example
    -------
    >>> videos_of(["b0RFKhbpFJA_30000", "b0RFKhbpFJA_30000", None], "strong.tsv")
    ['b0RFKhbpFJA', 'b0RFKhbpFJA', None]
    """
    segments = defaultdict(set)
    for name in dict.fromkeys(clips):
        if name is not None:
            segments[youtube_id(name)].add(name)
    several = sorted(video for video, names in segments.items() if len(names) > 1)
    if several:
        logger.warning(
            "%s has several segments of %d videos, which keep their own ids: %s",
            source,
            len(several),
            some_of(several),
        )
    alone = {name: video for video, names in segments.items() for name in names}
    alone |= {name: name for video in several for name in segments[video]}
    return [name and alone[name] for name in clips]
