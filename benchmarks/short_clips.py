"""What zero-padding, repeating and plain short input do to a published tagger.

> python benchmarks/short_clips.py PATH_IN_AUDIOSET_SCHEMA --split bal_train+eval \
      --student mn04_as

Each clip is cut to its loudest stretch of a length, and scored by every policy. Prints
a Markdown table: macro mAP, clips whose likeliest class is one of their labels, and
clips that some class claims with more than 0.99.
"""

import argparse

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from efficientat_plugin.data.decoding import decode
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.rows import load_rows, summarize_rows
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.tagging.torch_tagger import AudioTagger

LENGTHS = (0.5, 1.0, 2.0, 5.0)  # s
RATE = 32000  # Hz
POLICIES = {
    "as it is": ("as_is", 0.0),
    "zeros to 10 s": ("zero_pad", 10.0),
    "repeated to 2 s": ("repeat", 2.0),
    "repeated to 5 s": ("repeat", 5.0),
    "repeated to 10 s": ("repeat", 10.0),
}


def loudest(sound: NDArray[np.float32], num_samples: int) -> NDArray[np.float32]:
    """The stretch of most energy."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64))])
    start = int(np.argmax(energy[num_samples:] - energy[:-num_samples]))
    return sound[start : start + num_samples]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="eval")
    parser.add_argument("--student", default="mn04_as")
    parser.add_argument("--cache", default=None)
    arguments = parser.parse_args()
    rows = load_rows(arguments.dataset, arguments.split, cache_dir=arguments.cache)
    summary = summarize_rows(rows, audioset_labels())
    labels = np.stack([audioset_labels().multi_hot(i) for i in summary.indices])
    sounds = [decode(row["audio"], RATE, 5 * RATE) for row in tqdm(rows, unit="clip")]
    tagger = AudioTagger.from_student(arguments.student, short_clips="as_is")
    print("| length | input | mAP | top class right | a class above 0.99 |")
    print("|---" * 5 + "|")
    for seconds in LENGTHS:
        cut = [loudest(sound, round(seconds * RATE)) for sound in sounds]
        for name, (how, until) in POLICIES.items():
            if how == "repeat" and until <= seconds:
                continue
            inputs = [lengthened(sound, round(until * RATE), how) for sound in cut]
            scores = tagger.probabilities(
                tqdm(inputs, desc=f"{seconds} s, {name}"), RATE
            )
            right = labels[np.arange(len(labels)), scores.argmax(axis=1)].mean()
            claimed = (scores.max(axis=1) > 0.99).mean()
            precision = tagging_scores(scores, labels).mAP
            print(
                f"| {seconds} s | {name} | {precision:.3f} | {right:.3f} | "
                f"{claimed:.3f} |",
                flush=True,
            )
    print(f"\nN = {len(labels)} clips, {arguments.student}.")


if __name__ == "__main__":
    main()
