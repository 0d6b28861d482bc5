"""``efficientat embed`` writes the embeddings of a folder of sounds."""

import json

import numpy as np
import pytest
from pyarrow import parquet


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_embeddings_are_those_of_the_tagger(run, tagger, five, tmp_path, suffix):
    target = tmp_path / f"embeddings.{suffix}"
    assert run("embed", five, "--output", target, "--workers", 3)[0] == 0
    if suffix == "npz":
        with np.load(target) as content:
            names, embeddings = content["names"].tolist(), content["embeddings"]
            settings = json.loads(str(content["settings"]))
    else:
        table = parquet.read_table(target)
        names = table["name"].to_pylist()
        embeddings = np.array(table["embedding"].to_pylist(), np.float32)
        settings = json.loads(table.schema.metadata[b"settings"])
    assert names == [f"{number}.wav" for number in range(5)]
    for name, embedding in zip(names, embeddings, strict=True):
        np.testing.assert_allclose(embedding, tagger.embed(five / name), atol=1e-6)
    assert settings["model_sha256"] == tagger.ensemble.sha256()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"embeddings.{suffix}",
        "five",
    ]


def test_embed_leaves_out_what_cannot_be_read(run, mixed_folder, tmp_path):
    target = tmp_path / "x.npz"
    code, _, err = run("embed", mixed_folder, "--output", target)
    assert code == 1 and "3 of 5 inputs could not be read" in err
    with np.load(target) as content:
        assert content["names"].tolist() == ["below/also.flac.wav", "good.wav"]
    for path in mixed_folder.rglob("*good*"):
        path.unlink()
    (mixed_folder / "below" / "also.flac.wav").unlink()
    other = tmp_path / "y.npz"
    assert run("embed", mixed_folder, "--output", other)[0] == 2
    assert not other.exists() and not (tmp_path / "y.npz.parts").exists()
