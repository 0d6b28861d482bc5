"""What processes do that write one store, or one file of embeddings, at once."""

import random
import sys

import numpy as np
from simultaneous import REFUSED

from efficientat_plugin.cli.embed import write_embeddings
from efficientat_plugin.cli.resumed_output import SoundFile, kept_beside
from efficientat_plugin.teachers.store.writer import StoreWriter

NUM_CLIPS, NUM_CLASSES, AT_ONCE = 120, 5, 8
ABOUT = {"teacher": "t", "labels_sha256": "0" * 64, "num_classes": NUM_CLASSES}
ABOUT |= {"sample_rate": 32000, "clip_seconds": 1.0}
CLIPS = [f"clip {number}" for number in range(NUM_CLIPS)]


def values_of(name):
    """Logits of a clip or sound, from its name, so that rows cannot be mixed up."""
    values = np.random.default_rng(list(name.encode())).normal(size=NUM_CLASSES)
    return values.astype(np.float16).astype(np.float32)


def fill_store(path, seed, to_the_end=False):
    """Appends what a store lacks."""
    draw = random.Random(seed)
    try:
        with StoreWriter(path, **ABOUT) as writer:
            wanted = draw.sample(CLIPS, NUM_CLIPS if to_the_end else NUM_CLIPS // 2)
            for start in range(0, len(wanted), AT_ONCE):
                clips = [c for c in wanted[start : start + AT_ONCE] if c not in writer]
                logits = np.stack([values_of(clip) for clip in clips or CLIPS[:1]])
                writer.append(clips, logits[: len(clips)], [c[::-1] for c in clips])
    except (OSError, ValueError):
        sys.exit(REFUSED)


def embed(output, names, seed):
    """As ``efficientat embed`` does, without a model, in an order of its own."""
    sounds = [SoundFile(name, len(name), 0) for name in names]
    try:
        with kept_beside(output, {"of": "names"}) as kept:
            for sound in random.Random(seed).sample(sounds, len(sounds)):
                if sound not in kept.done:
                    kept.add([sound], values_of(sound.name)[None])
            write_embeddings(output, names, np.stack(list(kept.rows(sounds))), {})
    except (OSError, ValueError):
        sys.exit(REFUSED)
