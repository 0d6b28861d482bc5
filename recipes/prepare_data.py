"""Writes any data set as Parquet shards that are fast to read: mono, 32 kHz.

> python recipes/prepare_data.py hparams/prepare_data.yaml --dataset PATH \
      --split bal_train+eval --folder FOLDER --num_proc 8

Rerun the same command to resume an interrupted run after its last complete shard; in a
complete folder it rewrites shards that have become corrupt. FOLDER is then a
``--dataset``, as PATH is.
"""

from typing import Any

from efficientat_plugin.data.labelled import open_labelled
from efficientat_plugin.data.prepare.preparation import prepare
from efficientat_plugin.data.prepare.shards import MORE_COLUMNS
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.skipped import TooManyUnreadable
from efficientat_plugin.support.launch import load_hparams, parse_and_join, start
from efficientat_plugin.support.plain_text import some_of

TABLE_SPLIT = "all"


def main(argv: list[str]) -> None:
    """Prepares the data set that the YAML describes."""
    hparams_file, _, overrides = parse_and_join(argv)
    hparams = load_hparams(hparams_file, overrides)
    prepared = prepare(
        open_splits(hparams),
        hparams["encoder"],
        hparams["folder"],
        hparams["clips_per_shard"],
        hparams["num_proc"],
        hparams["max_unreadable_share"],
        hparams["verify"],
    )
    print(prepared)
    if prepared.changed:
        some = some_of(prepared.changed)
        print(
            f"{len(prepared.changed)} clips changed audibly (correlation below one "
            f"half): {some}; a higher --quality preserves them"
        )


def open_splits(hparams: dict[str, Any]) -> dict[str, Any]:
    """Opens the rows by split, as the YAML names them."""
    dataset, cache = hparams["dataset"], hparams["dataset_cache"]
    if hparams["split"] is not None:
        more = ("human_labels", *MORE_COLUMNS)
        streaming, config = hparams["streaming"], hparams["dataset_config"]
        return {
            name: load_rows(dataset, name, streaming, config, cache, more)
            for name in hparams["split"].split("+")
        }
    if hparams["streaming"]:
        raise ValueError("--streaming True needs --split; a table is read as a whole")
    clips = open_labelled(
        dataset,
        hparams["facts"],
        config=hparams["dataset_config"],
        cache_dir=cache,
        **hparams["table"],
    )
    return {TABLE_SPLIT: clips.rows}


if __name__ == "__main__":
    start(main, refusals=(TooManyUnreadable,))
