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
