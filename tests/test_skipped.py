"""Unreadable clips: each named once, counted by pass, too many an error."""

import pytest

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.skipped import SkippedClips, TooManyUnreadable


def _skipped(*numbers):
    return [Skipped(f"clip-{number:03d}", "it has no samples") for number in numbers]


def _read(count, first=0):
    return [f"good-{number}" for number in range(first, first + count)]


def test_a_clip_is_named_once_over_all_passes(caplog):
    clips = SkippedClips(max_share=1.0)
    for _ in range(3):
        clips.add(_skipped(1, 2, 1), _read(2))
        clips.add(_skipped(2), _read(2))
        clips.finish_pass()
    for number in (1, 2):
        line = f"Skipping clip clip-00{number}: it has no samples"
        assert caplog.messages.count(line) == 1
    assert clips.reasons == dict(_skipped(1, 2))
    assert caplog.messages.count("2 of 4 clips were skipped as unreadable") == 3


@pytest.mark.parametrize("times", [1, 20])
def test_a_clip_counts_once_however_often_it_is_drawn(times):
    """2 of 62 clips stay 3 %, though bad ones are met more often than good ones."""
    clips = SkippedClips(max_share=0.04)
    for _ in range(times):
        clips.add(_skipped(1, 2, 1, 2), _read(60))
    clips.finish_pass()
    clips.max_share = 0.03
    for _ in range(times):
        clips.add(_skipped(1, 2), _read(60))
    with pytest.raises(RuntimeError, match="2 of 62 clips .* allowed share of 0.03"):
        clips.finish_pass()


def test_clips_of_an_interrupted_run_count():
    clips = SkippedClips(max_share=0.1, already_read=8)
    clips.add(_skipped(1), _read(1))
    clips.finish_pass()
    with pytest.raises(RuntimeError, match="2 of 10 clips"):
        clips.add(_skipped(1, 2), [])
        clips.finish_pass()


def test_a_name_does_not_command_a_terminal(caplog):
    skipped = SkippedClips(max_share=0.0)
    skipped.add([Skipped("a\x1b[2J", "it is\nno sound")], read=[])
    with pytest.raises(TooManyUnreadable) as caught:
        skipped.finish_pass()
    for text in (caplog.messages[0], str(caught.value)):
        assert r"a\x1b[2J: it is\nno sound" in text and "\x1b" not in text


def test_a_clean_pass_reports_nothing(caplog):
    clips = SkippedClips(max_share=0.0)
    clips.add([], _read(5000))
    clips.finish_pass()
    assert not caplog.messages and not clips.reasons


def test_each_pass_is_judged_by_itself():
    clips = SkippedClips(max_share=0.1)
    for good in (1000, 9):  # the allowed share passes
        clips.add(_skipped(1), _read(good))
        clips.finish_pass()
    clips.add(_skipped(1), _read(8))
    with pytest.raises(RuntimeError, match="1 of 9 clips .* allowed share of 0.1"):
        clips.finish_pass()


@pytest.mark.parametrize(("count", "more"), [(1, []), (23, ["... and 3 more"])])
def test_the_error_names_clips_and_reasons(count, more):
    clips = SkippedClips(max_share=0.0)
    clips.add(_skipped(*range(count)), _read(9))
    with pytest.raises(RuntimeError) as error:
        clips.finish_pass()
    first, *named = str(error.value).splitlines()
    assert first.endswith("fix the data or raise max_unreadable_share:")
    expected = [f"{clip_id}: {reason}" for clip_id, reason in _skipped(*range(count))]
    assert named == expected[:20] + more


def test_a_pass_stops_early_once_enough_clips_were_tried():
    clips = SkippedClips(max_share=0.01)
    clips.add(_skipped(*range(100)), _read(0))
    clips.add([], _read(899))
    with pytest.raises(RuntimeError, match="100 of 1000 clips"):
        clips.add([], _read(1, first=899))


@pytest.mark.parametrize("max_share", [-0.1, 1.1])
def test_a_share_beyond_one_is_refused(max_share):
    with pytest.raises(ValueError, match=f"max_share={max_share} must be from 0 to 1"):
        SkippedClips(max_share)
