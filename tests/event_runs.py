"""Runs of ``recipes/audioset_strong.py`` on synthetic clips, each within seconds."""

from recipe_runs import REPOSITORY, arguments_of

from efficientat_plugin.data.soundscapes import make_soundscapes

RECIPE = REPOSITORY / "recipes" / "audioset_strong.py"
SIDES = ("train", "valid", "test")
LENGTHS = {"clip_seconds": 3.0, "event_seconds": (0.5, 1.5)}


def write_events(folder, number=20):
    """A few soundscapes, of which a fifth is to validate and to test on."""
    make_soundscapes(folder, number, valid_share=0.2, test_share=0.2, **LENGTHS)
    return folder


def write_half(folder):
    """A table of the events of all clips but every other one to train on."""
    tables = [(folder / "events" / f"{side}.tsv").read_text() for side in SIDES]
    (head, *train), *others = (table.splitlines() for table in tables)
    names = sorted({line.split("\t")[0] for line in train})[::2]
    rows = [line for line in train if line.split("\t")[0] in names]
    rows += [line for table in others for line in table[1:]]
    (folder / "events" / "half.tsv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def event_command(data, output, **more):
    """The recipe on small data, with a small student."""
    options = {
        "dataset": data,
        "events": ",".join(str(data / "events" / f"{side}.tsv") for side in SIDES),
        "folder": output.parent / "sample",
        "number": 3,
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
