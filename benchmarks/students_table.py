"""Prints a Markdown table of published students and teachers: costs and scores.

    python benchmarks/students_table.py
    python benchmarks/students_table.py fmn04_strong fmn10_tf_256_strong
    python benchmarks/students_table.py mn04_as passt_s_kd_p16_128_ap486 --no-latency

Nothing is downloaded: costs do not depend on the values of weights, and the mAP is
the published one.
"""

import argparse

import torch
from tqdm import tqdm

from efficientat_plugin.cost.complexity import (
    count_macs,
    count_parameters,
    count_state,
    measure_latency,
    peak_memory,
    receptive_field,
)
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.published import (
    PUBLISHED,
    PublishedStudent,
    published,
)
from efficientat_plugin.pretrained.published_passt import TEACHERS, PublishedTeacher
from efficientat_plugin.pretrained.weights import FAMILIES, FRAME_FAMILIES
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.students.student import Student

CLIP_SECONDS = 10
COLUMNS = {
    "student": "---",
    "parameters": "---:",
    "with statistics": "---:",
    "MACs": "---:",
    "peak memory": "---:",
    "receptive field": "---",
    "mAP": "---:",
    "ms per clip": "---:",
}
FRAME_COLUMNS = {
    name: COLUMNS.get(name, "---:")
    for name in "student,parameters,MACs,peak memory,PSDS1,ms per clip".split(",")
}


def main_students() -> list[str]:
    """Published students of AudioSet with an mAP, the first of those built alike."""
    first_names: dict[str, str] = {}
    for entry in PUBLISHED.values():
        if entry.trained_on == "AudioSet" and entry.mean_ap is not None:
            alike = repr((entry.family, entry.options(), entry.front_end()))
            first_names.setdefault(alike, entry.name)
    return list(first_names.values())


def build(entry: PublishedStudent | PublishedTeacher, device: str) -> Student:
    """The network with weights by chance; on the meta device with none."""
    families = {**FAMILIES, **FRAME_FAMILIES}
    family = PaSST if isinstance(entry, PublishedTeacher) else families[entry.family]
    with torch.device(device):
        return family(**entry.options())


def scores_frames(entry: PublishedStudent | PublishedTeacher) -> bool:
    """Whether it detects events, so that it has another table."""
    return isinstance(entry, PublishedStudent) and entry.family in FRAME_FAMILIES


def memory_and_field(
    entry: PublishedStudent | PublishedTeacher, student: Student, log_mel: LogMel
) -> list[str]:
    """Peak memory and receptive field."""
    if isinstance(
        entry, PublishedTeacher
    ):  # its memory is what attention's kernel does
        return ["-", "the whole clip"]
    n_frames = log_mel.num_frames(CLIP_SECONDS * log_mel.sample_rate)
    memory = peak_memory(student, log_mel.n_mels, n_frames)
    field = receptive_field(student)
    seconds = field.milliseconds(log_mel) / 1000
    return [
        f"{memory / 1e6:.2f} MB",
        f"{field.size} frames ({seconds:.1f} s), {field.size} bands",
    ]


def row(entry: PublishedStudent | PublishedTeacher, rounds: int) -> list[str]:
    """The cells of one network; the last only where there are rounds."""
    log_mel = LogMel(**entry.front_end())
    n_mels = log_mel.n_mels
    n_frames = log_mel.num_frames(CLIP_SECONDS * log_mel.sample_rate)
    student = build(entry, "meta")
    parameters = f"{count_parameters(student) / 1e6:.3f} M"
    macs = f"{count_macs(student, n_mels, n_frames) / 1e9:.3f} G"
    if isinstance(entry, PublishedStudent) and scores_frames(entry):
        memory = f"{peak_memory(student, n_mels, n_frames) / 1e6:.2f} MB"
        psds1 = "-" if entry.psds1 is None else f"{entry.psds1:.1f}"
        cells = [entry.name, parameters, macs, memory, psds1]
    else:
        cells = [
            entry.name,
            parameters,
            f"{count_state(student) / 1e6:.3f} M",
            macs,
            *memory_and_field(entry, student, log_mel),
            "-" if entry.mean_ap is None else f"{entry.mean_ap:.1f}",
        ]
    if rounds:
        real = build(entry, "cpu")
        cells.append(f"{measure_latency(real, n_mels, n_frames, rounds):.1f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="published; none: the main students")
    parser.add_argument("--no-latency", action="store_true", help="time nothing")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be 1 or more")
    try:
        entries = [
            TEACHERS[name] if name in TEACHERS else published(name)
            for name in arguments.names or main_students()
        ]
    except ValueError as error:
        parser.error(str(error))

    torch.set_num_threads(arguments.threads)
    rounds = 0 if arguments.no_latency else arguments.rounds
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    with tqdm(entries, desc="students", unit="student") as bar:
        for entry in bar:
            bar.set_postfix_str(entry.name)
            rows[scores_frames(entry)].append(row(entry, rounds))
    for of_frames, lines in rows.items():
        columns = dict(FRAME_COLUMNS if of_frames else COLUMNS)
        if not rounds:
            del columns["ms per clip"]
        for cells in [list(columns), list(columns.values()), *lines] if lines else ():
            print("| " + " | ".join(cells) + " |")
        print()
    print(
        f"Per clip of {CLIP_SECONDS} s, float32. Peak memory: the input and the output "
        "of the most demanding layer, and the shortcuts around it. Receptive field: of "
        "the convolutions; squeeze-excite and dynamic blocks depend on the whole clip. "
        "mAP: published, AudioSet evaluation, percent; PSDS1: AudioSet strong."
    )
    if rounds:
        print(
            "Milliseconds: one clip by itself, from log-mel to logits, on a CPU; "
            f"threads: {arguments.threads}; median of {rounds}."
        )


if __name__ == "__main__":
    main()
