"""Makes soundscapes: events at known times on backgrounds, with all of their labels.

> python recipes/make_soundscapes.py hparams/soundscapes.yaml --sounds PATH --number 200

Without ``--sounds`` the events are synthetic, and no data is needed. The folder gets
its name once all of it is written; a killed run leaves nothing to use, and is rerun.
"""

from efficientat_plugin.data.labelled import open_labelled
from efficientat_plugin.data.soundscapes import make_soundscapes
from efficientat_plugin.support.launch import load_hparams, parse_and_join, start


def main(argv: list[str]) -> None:
    """Makes the soundscapes that the YAML describes."""
    hparams_file, _, overrides = parse_and_join(argv)
    hparams = load_hparams(hparams_file, overrides)
    sounds = hparams["sounds"]
    if sounds is not None:
        hub = hparams["hub"]
        clips = open_labelled(
            sounds,
            hparams["facts"],
            config=hub["dataset_config"],
            cache_dir=hub["dataset_cache"],
            **hparams["table"],
        )
        sounds = clips.rows
    made = make_soundscapes(
        hparams["folder"],
        sounds=sounds,
        backgrounds=hparams["backgrounds"],
        seed=hparams["seed"],
        **hparams["output"],
        **hparams["scene"],
    )
    counts = ", ".join(f"{count} in {side}" for side, count in made.num_clips.items())
    total, classes = sum(made.num_events.values()), len(made.num_events)
    print(f"{made.folder}: soundscapes: {counts}; {total} events of {classes} classes")


if __name__ == "__main__":
    start(main, resumes=False)
