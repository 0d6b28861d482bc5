"""``efficientat info``: prints a model's architecture, input and cost."""

import argparse
from typing import TYPE_CHECKING, cast

from efficientat_plugin.cli.arguments import (
    MODEL_HELP,
    Commands,
    add_model_details,
)
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from efficientat_plugin.features import LogMel
    from efficientat_plugin.runtime import Tagger
    from efficientat_plugin.runtime.front_end import FrontEndSettings
    from efficientat_plugin.students.ensemble import WaveformStudent
    from efficientat_plugin.tagging.torch_tagger import AudioTagger


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "info", parents=[common], help="print a model's architecture, input and cost"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_model_details(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the facts of a model, or of each member of an ensemble."""
    from efficientat_plugin.cli.load_model import is_exported, tagger_of

    tagger = tagger_of(arguments)
    if is_exported(arguments.model):
        print("\n".join(_exported_lines(cast("Tagger", tagger))))
        return 0
    tagger = cast("AudioTagger", tagger)
    for number, member in enumerate(tagger.ensemble.members):
        if number:
            print()
        print("\n".join(_lines(tagger, member)))
    return 0


def _exported_lines(tagger: "Tagger") -> list[str]:
    """Formats the metadata of an exported file; only its source has the cost."""
    facts = tagger.facts
    front_end, frames = facts.front_end, "any number of"
    if facts.num_frames is not None:
        frames = f"only {facts.num_frames}"
    elif facts.max_frames is not None:
        frames = f"at most {facts.max_frames}"
    begins = "the waveform" if facts.has_front_end else "the log-mel"
    found = {
        "student": facts.student,
        "exported from": f"{facts.source}, SHA-256 {facts.sha256}",
        "precision": f"{facts.precision}, its graph begins with {begins}",
        "classes": f"{len(facts.labels)}, {facts.target}",
        "front end": front_end_text(front_end),
        "clip": f"{facts.clip_seconds:g} s; it takes {frames} mel frames",
    }
    if facts.frame_samples is not None:
        milliseconds = 1000 * facts.frame_samples / front_end.sample_rate
        found["events"] = f"scored every {milliseconds:g} ms"
    return _aligned({name: shown(text) for name, text in found.items()})


def _aligned(facts: dict[str, str]) -> list[str]:
    return [f"{name + ':':<31}{text}" for name, text in facts.items()]


def _lines(tagger: "AudioTagger", member: "WaveformStudent") -> list[str]:
    from efficientat_plugin.cost.complexity import measure

    student, log_mel = member.student, member.log_mel
    # Unfrozen again, because trainable parameters are counted.
    student.requires_grad_(True)
    clip_seconds = tagger.clip_seconds
    num_frames = log_mel.num_frames(tagger.clip_samples)
    cost = measure(student, log_mel.n_mels, num_frames)
    facts = {
        "student": student.describe(),
        "classes": f"{len(tagger.labels)}, {tagger.target}",
        "front end": front_end_text(log_mel),
        "clip": f"{clip_seconds:g} s, {num_frames} mel frames",
    }
    return [*_aligned(facts), cost.describe(log_mel)]


def front_end_text(log_mel: "LogMel | FrontEndSettings") -> str:
    """Describes a front end in one line.

    Example
    -------
    >>> from efficientat_plugin.features import LogMel
    >>> front_end_text(LogMel())
    '32000 Hz, 128 mel bands of 0 to 15000 Hz, window 25 ms, hop 10 ms'
    """
    window_ms, hop_ms = (
        1000 * samples / log_mel.sample_rate
        for samples in (log_mel.win_length, log_mel.hop_length)
    )
    return (
        f"{log_mel.sample_rate} Hz, {log_mel.n_mels} mel bands of {log_mel.f_min:g} to "
        f"{log_mel.f_max:g} Hz, window {window_ms:g} ms, hop {hop_ms:g} ms"
    )
