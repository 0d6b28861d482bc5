"""``efficientat embed``: writes the embeddings of a folder of sounds to one file."""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientat_plugin.cli.arguments import (
    Commands,
    add_model,
    whole_number,
)
from efficientat_plugin.cli.inputs import Failures, decoded_ahead, find_sounds
from efficientat_plugin.cli.outputs import check_target, hides_progress
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from efficientat_plugin.cli.resumed_output import KeptResults, SoundFile

    Embed = Callable[..., NDArray[np.float32]]  # (sound, sample_rate) -> [D]

SUFFIXES = (".npz", ".parquet")


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "embed",
        parents=[common],
        help="write the embeddings of a folder of sounds to one file",
        description="Computes the embeddings of all sounds in a folder, searched "
        "recursively and sorted by name. To resume an interrupted run, rerun the same "
        "command.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="FILE.npz, with arrays names [N], embeddings [N, D] and settings, or "
        "FILE.parquet, with columns name and embedding",
    )
    add_model(parser)
    parser.add_argument(
        "--sources",
        metavar="LAYERS",
        help="layers that form the embedding, joined by commas, such as mel,b5,clf1 "
        "(default: mel,b5,b11,b13,b15); not for exported files, which have one "
        "embedding",
    )
    parser.add_argument(
        "--pooling", help="pooling of the blocks, such as avg_and_max (default: avg)"
    )
    parser.add_argument(
        "--workers",
        type=whole_number,
        default=2,
        metavar="N",
        help="decoding threads (default: %(default)s)",
    )
    parser.set_defaults(
        run=run,
        after_interrupt="what was computed is kept in {output}.parts; rerun the same "
        "command to resume from there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Embeds the sounds that can be read and reports the others."""
    check_target(arguments.output, SUFFIXES)
    if not arguments.folder.is_dir():
        raise ValueError(
            f"{shown(arguments.folder)} is not a folder; give one of sounds"
        )
    failures = Failures()
    paths = find_sounds([arguments.folder], failures)
    if not paths:
        return failures.conclude(0)

    import numpy as np

    from efficientat_plugin.cli.load_model import tagger_of
    from efficientat_plugin.cli.resumed_output import kept_beside, settings_of

    options = embedding_options(arguments)
    tagger = tagger_of(arguments)
    embed: Embed = partial(tagger.embed, **options)
    settings = settings_of(tagger, **(options or {"sources": ["embedding"]}))
    # Embeds silence first, so that invalid options are refused before any work.
    silence = np.zeros(tagger.min_samples, np.float32)
    size = len(embed(silence, tagger.sample_rate))
    with kept_beside(arguments.output, settings) as kept:
        sounds = _embed(paths, embed, tagger.sample_rate, kept, failures, arguments)
        if sounds:
            names = [p.relative_to(arguments.folder).as_posix() for p in sounds]
            embeddings = np.empty((len(sounds), size), np.float32)
            for number, row in enumerate(kept.rows(sounds.values())):
                embeddings[number] = row
            write_embeddings(arguments.output, names, embeddings, settings)
    return failures.conclude(len(sounds))


def _embed(
    paths: Sequence[Path],
    embed: "Embed",
    sample_rate: int,
    kept: "KeptResults",
    failures: Failures,
    arguments: argparse.Namespace,
) -> "dict[Path, SoundFile]":
    """Embeds the sounds that ``kept`` lacks; returns all that it then has."""
    from tqdm import tqdm

    from efficientat_plugin.cli.resumed_output import sound_files
    from efficientat_plugin.data.decoding import UnreadableClip

    files = sound_files(paths, failures)
    missing = [path for path, file in files.items() if file not in kept.done]
    with tqdm(
        decoded_ahead(missing, sample_rate, arguments.workers),
        initial=len(files) - len(missing),
        total=len(files),
        unit=" sounds",
        disable=hides_progress(arguments.output),
    ) as progress:
        for decoded in progress:
            path = decoded.path
            try:
                if decoded.fault is not None:
                    raise UnreadableClip(decoded.fault)
                embedding = embed(decoded.sound, sample_rate)
            except UnreadableClip as fault:
                failures.add(path, fault.reason)
                del files[path]
            else:
                kept.add([files[path]], embedding[None])
    return files


def embedding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of ``LayerEmbedding``; none for an exported file."""
    from efficientat_plugin.cli.load_model import is_exported

    if is_exported(arguments.model):
        given = {"--sources": arguments.sources, "--pooling": arguments.pooling}
        for option, value in given.items():
            if value is not None:
                raise ValueError(
                    f"the exported file {arguments.model} computes one embedding, that "
                    f"of its last layer; leave out {option}, or give the model it was "
                    "exported from"
                )
        return {}

    from efficientat_plugin.students.embeddings import DEFAULT_SOURCES

    names = DEFAULT_SOURCES
    if arguments.sources is not None:
        names = tuple(name.strip() for name in arguments.sources.split(","))
    return {"sources": names, "pooling": arguments.pooling or "avg"}


def write_embeddings(
    output: Path,
    names: Sequence[str],
    embeddings: "NDArray[np.float32]",
    settings: dict[str, Any],
) -> None:
    """Writes one file; the same content gives the same bytes.

    Arguments
    ---------
    output : Path
        ".npz" or ".parquet".
    names : sequence of str
        Paths of the sounds, relative to their folder.
    embeddings : NDArray
        [N, D]
    settings : dict
        What they were computed with.
    """
    import numpy as np

    text = json.dumps(settings)
    with atomic_file(output, "wb") as file:
        if output.suffix.lower() == ".npz":
            np.savez(file, names=np.array(names), embeddings=embeddings, settings=text)
            return
        import pyarrow as pa
        from pyarrow import parquet

        values = pa.array(embeddings.reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(values, embeddings.shape[1])
        table = pa.table({"name": pa.array(names), "embedding": rows})
        parquet.write_table(table.replace_schema_metadata({"settings": text}), file)
