"""Mixes the clips of a data set into many unlabelled ones, for a teacher to score.

> python recipes/make_transfer_set.py hparams/make_transfer_set.yaml \
      --dataset PATH --split bal_train --num_clips 4000

Then run `dump_teacher_logits.py` with `--dataset FOLDER --split transfer` to store the
teacher's logits for them, and `audioset_kd.py` with `--transfer_set FOLDER`.
"""

import sys

from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.transfer import write_transfer_set
from efficientat_plugin.support.launch import load_hparams, parse_and_join, start


def main(argv: list[str]) -> None:
    """Writes the transfer set that the YAML describes."""
    hparams_file, _, overrides = parse_and_join(argv)
    hparams = load_hparams(hparams_file, overrides)
    try:
        rows = hparams["load_rows"]()
        folder = write_transfer_set(
            rows,
            ClipReader(
                audioset_labels(),
                hparams["clip_seconds"],
                hparams["sample_rate"],
                hparams["short_clips"],
            ),
            hparams["folder"],
            hparams["num_clips"],
            hparams["max_sources"],
            hparams["seed"],
        )
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{hparams['num_clips']} clips are in {folder}, split transfer")


if __name__ == "__main__":
    start(main, resumes=False)
