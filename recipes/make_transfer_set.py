"""Mixes the clips of a data set into many unlabelled ones, for a teacher to hear.

> python recipes/make_transfer_set.py hparams/make_transfer_set.yaml \
      --dataset PATH --split bal_train --num_clips 4000

Then `dump_teacher_logits.py` with `--dataset FOLDER --split transfer` stores what the
teacher says of them, and `audioset_kd.py` takes them as `--transfer_set FOLDER`.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.targets import audioset_labels
from efficientat_plugin.data.transfer import write_transfer_set


def main(argv: list[str]) -> None:
    """Writes the transfer set that the YAML describes."""
    hparams_file, _, overrides = sb.parse_arguments(argv)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    try:
        rows = hparams["load_rows"]()
        folder = write_transfer_set(
            rows,
            ClipReader(
                audioset_labels(), hparams["clip_seconds"], hparams["sample_rate"]
            ),
            hparams["folder"],
            hparams["num_clips"],
            hparams["max_sources"],
            hparams["seed"],
        )
    except (FileNotFoundError, FileExistsError) as error:
        sys.exit(str(error))
    print(f"{hparams['num_clips']} clips are in {folder}, split transfer")


if __name__ == "__main__":
    main(sys.argv[1:])
