"""Forms of AudioSet that are read by their own names, or refused in a sentence."""

import io
import tarfile

import datasets
import numpy as np
import pytest
import soundfile

from efficientat_plugin.data.labelled import open_labelled
from efficientat_plugin.data.rows import load_rows

SOUND = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)


@pytest.fixture
def decoded(tmp_path):
    """Parquet of sound that `datasets` has decoded."""
    number = datasets.List(datasets.Value("float32"))
    audio = {"array": number, "sampling_rate": datasets.Value("int64")}
    audio["path"] = datasets.Value("string")
    labels = datasets.List(datasets.Value("string"))
    features = datasets.Features(
        video_id=datasets.Value("string"), audio=audio, labels=labels
    )
    sound = {"array": SOUND.tolist(), "sampling_rate": 8000, "path": "a.wav"}
    columns = {"video_id": ["a", "b"], "audio": [sound] * 2, "labels": [["/m/a"]] * 2}
    rows = datasets.Dataset.from_dict(columns, features)
    (tmp_path / "eval").mkdir()
    rows.to_parquet(tmp_path / "eval" / "0.parquet")
    return tmp_path


WAYS = {
    "rows": lambda path: load_rows(str(path), "eval"),
    "a stream": lambda path: load_rows(str(path), "eval", streaming=True),
    "a folder of tables": lambda path: open_labelled(str(path), {}),
    "a table": lambda path: open_labelled(str(path / "eval" / "0.parquet"), {}),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_decoded_sound_in_a_table_is_refused_in_a_sentence(decoded, way):
    with pytest.raises(ValueError, match="column audio has array and sampling_rate"):
        way(decoded)


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("of", ["folder", "file"])
def test_shards_are_refused_in_a_sentence(tmp_path, split, of):
    path = tmp_path / "shard-000.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("a.wav")
        archive.addfile(entry, io.BytesIO())
    given = str(tmp_path if of == "folder" else path)
    with pytest.raises(ValueError, match=r"not supported; unpack them \(tar xf shard"):
        load_rows(given, split)
    with pytest.raises(ValueError, match=r"not supported; unpack them \(tar xf shard"):
        open_labelled(given, {})


@pytest.mark.parametrize(
    ("split", "official"),
    [
        ("bal_train", "balanced_train"),
        ("unbal_train", "unbalanced_train"),
        ("eval", "eval"),
    ],
)
def test_segments_go_by_their_official_names(tmp_path, split, official):
    soundfile.write(tmp_path / "Yaaaaaaaaaaa.wav", SOUND, 8000)
    for name in {split, official}:
        path = tmp_path / f"{name}_segments.csv"
        path.write_text('# YTID, start\naaaaaaaaaaa, 0, 10, "/m/a,/m/b"\n')
        rows = load_rows(str(tmp_path), split)
        assert rows["video_id"][:] == ["aaaaaaaaaaa"]
        assert rows["labels"][:] == [["/m/a", "/m/b"]]
        path.unlink()
