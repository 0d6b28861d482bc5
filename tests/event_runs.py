"""Runs of ``recipes/audioset_strong.py`` on synthetic clips, each within seconds."""

from recipe_runs import REPOSITORY, arguments_of

from efficientat_plugin.data.sample.event_sample import write_event_sample

RECIPE = REPOSITORY / "recipes" / "audioset_strong.py"


def write_events(folder, **counts):
    """A few clips with events: their folder, beside ``events.tsv``."""
    counts = {"num_train": 12, "num_valid": 4, "num_test": 4} | counts
    return write_event_sample(folder, clip_seconds=3.0, **counts)


def event_command(data, output, **more):
    """The recipe on small data, with a small student."""
    options = {
        "dataset": data,
        "num_train": 1,
        "num_valid": 1,
        "num_test": 1,
        "folder": output.parent / "sample",
        "number_of_epochs": 2,
        "warmup_steps": 1,
        "batch_size": 4,
        "eval_batch_size": 4,
        "num_workers": 0,
        "width": 0.1,
        "sequence_dim": 16,
        "clip_seconds": 3.0,
        "output_folder": output,
        "device": "cpu",
    }
    return [RECIPE, *arguments_of("events_quickstart", **(options | more))]
