"""Imports published logits of teachers into a LogitsStore.

> python recipes/import_teacher_logits.py passt_enemble_logits_mAP_495.npy \
      fname_to_index.pkl teacher_logits/passt_ensemble
> python recipes/import_teacher_logits.py ensemble.hdf5 teacher_logits/frames \
      --events audioset_train_strong.tsv

The first are nine PaSST transformers, of clips: both files are at
https://github.com/fschmid56/EfficientAT/releases/tag/v0.0.1 ("enemble" is their
spelling). The second are five transformers, of frames, for audioset_strong.py:
https://zenodo.org/records/14626113; this import resumes when it is rerun. AudioSet's
table of strong labels completes ids that the published code has cut.
"""

import argparse
import sys

from efficientat_plugin.data.events.event_tables import read_events
from efficientat_plugin.data.labels import audioset_labels, audioset_strong_labels
from efficientat_plugin.support.launch import start
from efficientat_plugin.teachers.store.import_frames import import_frame_logits, is_hdf5
from efficientat_plugin.teachers.store.import_published import import_published
from efficientat_plugin.teachers.store.logits_store import LogitsStore


def main(argv: list[str]) -> None:
    """Imports the files that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logits", help="the .npy file, or the .hdf5 file")
    parser.add_argument(
        "index", nargs="?", help="the .pkl file, YouTube id to row; not for .hdf5"
    )
    parser.add_argument("store", help="folder to create")
    parser.add_argument("--events", help="for .hdf5: table of all clips' strong labels")
    arguments = parser.parse_args(argv)
    try:
        store = import_logits(arguments)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{arguments.store}: {len(store)} clips")


def import_logits(arguments: argparse.Namespace) -> LogitsStore:
    """Imports logits of frames from HDF5, or of clips from a .npy file."""
    if is_hdf5(arguments.logits) != (arguments.index is None):
        raise ValueError("give LOGITS.npy INDEX.pkl STORE, or LOGITS.hdf5 STORE")
    if arguments.index is None:
        labels, clip_ids = audioset_strong_labels(), None
        if arguments.events is not None:
            clip_ids = read_events(arguments.events).events.keys()
        return import_frame_logits(
            arguments.logits,
            arguments.store,
            labels_sha256=labels.sha256,
            num_classes=len(labels),
            clip_ids=clip_ids,
        )
    labels = audioset_labels()
    return import_published(
        arguments.logits,
        arguments.index,
        arguments.store,
        labels_sha256=labels.sha256,
        num_classes=len(labels),
    )


if __name__ == "__main__":
    start(main, resumes=False)
