"""Imports the published logits of nine PaSST transformers into a LogitsStore.

> python recipes/import_teacher_logits.py passt_enemble_logits_mAP_495.npy \
      fname_to_index.pkl teacher_logits/passt_ensemble

Both files are at https://github.com/fschmid56/EfficientAT/releases/tag/v0.0.1
("enemble" is their spelling).
"""

import argparse
import sys

from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.support.launch import start
from efficientat_plugin.teachers.store.import_published import import_published


def main(argv: list[str]) -> None:
    """Imports the files that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logits", help="the .npy file")
    parser.add_argument("index", help="the .pkl file, YouTube id to row")
    parser.add_argument("store", help="folder to create")
    arguments = parser.parse_args(argv)
    labels = audioset_labels()
    try:
        store = import_published(
            arguments.logits,
            arguments.index,
            arguments.store,
            labels_sha256=labels.sha256,
            num_classes=len(labels),
        )
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{arguments.store}: {len(store)} clips")


if __name__ == "__main__":
    start(main, resumes=False)
