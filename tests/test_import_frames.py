"""Logits of frames from HDF5: round trips, cut names, resumed imports, refusals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from efficientat_plugin.data.labels import audioset_strong_labels
from efficientat_plugin.teachers.store.import_frames import import_frame_logits
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

h5py = pytest.importorskip("h5py")

RECIPE = Path(__file__).resolve().parents[1] / "recipes/import_teacher_logits.py"
IDS = ["--aE2O5G5WE", "YYYYYYYYYYm", "abcdefgh3pm", "abcdefghijk", "zzzzzzzzzz3"]
ABOUT = {"labels_sha256": "l", "num_classes": 3}


def _logits(count=5, classes=3, frames=8):
    draws = np.random.default_rng(0)
    return draws.normal(0, 4, (count, classes, frames)).astype(np.float16)


def _as_published(path, names, logits, **options):
    """Two data sets, as the published code reads them."""
    with h5py.File(path, "w") as file:
        file["filenames"] = [name.encode() for name in names]
        file.create_dataset("strong_logits", data=logits, **options)
    return path


def _by_name(path, names, logits):
    with h5py.File(path, "w") as file:
        for name, row in zip(names, logits, strict=True):
            file[name] = row
    return path


def _contents(path):
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name != ".lock"}


@pytest.mark.parametrize("write", [_as_published, _by_name])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_clip_is_found_by_its_youtube_id(tmp_path, write, dtype):
    logits = _logits().astype(dtype)
    file = write(tmp_path / "e.hdf5", [f"Y{i}.mp3" for i in IDS], logits)
    store = import_frame_logits(file, tmp_path / "s", rows_per_append=2, **ABOUT)
    found = store.lookup(IDS)
    assert found.known.all() and len(store) == 5
    assert np.array_equal(found.logits.numpy(), logits.astype(np.float32))
    manifest = store.manifest
    assert (manifest.num_frames, manifest.frame_seconds) == (8, 1.25)
    assert (manifest.sample_rate, manifest.has_weak) == (16000, False)


def test_names_cut_as_published_are_completed(tmp_path, caplog):
    cut = [f"Y{i}.mp3".rstrip(".mp3") for i in IDS]
    assert cut[1:3] == ["YYYYYYYYYYY", "Yabcdefgh"]  # the first looks like an id
    more = [f"Y{number:011}" for number in range(3)]
    logits = _logits(8)
    file = _as_published(tmp_path / "e.hdf5", [*cut, *more], logits)
    known = [*IDS, "another_one", *(name[1:] for name in more)]
    store = import_frame_logits(file, tmp_path / "s", clip_ids=known, **ABOUT)
    assert store.clip_ids()[:5] == IDS and not caplog.text
    store = import_frame_logits(file, tmp_path / "t", **ABOUT)
    assert "3 of 8 names are no whole YouTube ids" in caplog.text
    kept = ["YYYYYYYYYY", "abcdefgh", "abcdefghijk", "zzzzzzzzzz"]
    assert store.clip_ids()[1:5] == kept


def test_two_clips_of_one_cut_name_are_left_out(tmp_path, caplog):
    names = ["Yabcdefghij", "Y--aE2O5G5WE", "Yabcdefghij"]
    file = _as_published(tmp_path / "e.hdf5", names, _logits(3))
    known = ["abcdefghijm", "abcdefghijp", "--aE2O5G5WE"]
    store = import_frame_logits(file, tmp_path / "s", clip_ids=known, **ABOUT)
    assert store.clip_ids() == ["--aE2O5G5WE"]
    assert "2 of 3 rows are left out, since two clips or two rows share" in caplog.text
    assert np.array_equal(store.lookup(known[2:]).logits[0], _logits(3)[1])


def test_rows_that_are_not_finite_are_left_out_and_named(tmp_path, caplog):
    logits = _logits()
    logits[1, 0, 3], logits[4, 2, 7] = np.nan, -np.inf
    file = _as_published(tmp_path / "e.hdf5", IDS, logits, chunks=(1, 3, 8))
    store = import_frame_logits(file, tmp_path / "s", **ABOUT)
    assert store.clip_ids() == [IDS[0], *IDS[2:4]]
    assert f"2 rows are left out, since they are not finite: {IDS[1]}" in caplog.text


@pytest.mark.parametrize("write", [_as_published, _by_name])
def test_an_interrupted_import_ends_like_an_undisturbed_one(tmp_path, write):
    file = write(tmp_path / "e.hdf5", IDS, _logits())
    import_frame_logits(file, tmp_path / "whole", rows_per_append=2, **ABOUT)
    append, calls = StoreWriter.append, []

    def stop(self, *arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(append(self, *arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            import_frame_logits(file, tmp_path / "s", rows_per_append=2, **ABOUT)
    assert len(LogitsStore(tmp_path / "s")) == 2
    import_frame_logits(file, tmp_path / "s", rows_per_append=2, **ABOUT)
    assert _contents(tmp_path / "s") == _contents(tmp_path / "whole")
    other = write(tmp_path / "f.hdf5", IDS, _logits() + np.float16(1))
    with pytest.raises(ValueError, match="holds other logits than .*f.hdf5"):
        import_frame_logits(other, tmp_path / "s", **ABOUT)


def _linked(path):
    with h5py.File(path, "w") as file:
        file["filenames"] = [i.encode() for i in IDS]
        file["strong_logits"] = h5py.ExternalLink("e.hdf5", "strong_logits")


def _soft(path):
    with h5py.File(path, "w") as file:
        file["a"] = h5py.SoftLink("/b")


def _virtual(path):
    layout = h5py.VirtualLayout((5, 3, 8), np.float16)
    layout[:] = h5py.VirtualSource("e.hdf5", "strong_logits", (5, 3, 8))
    with h5py.File(path, "w") as file:
        file["filenames"] = [i.encode() for i in IDS]
        file.create_virtual_dataset("strong_logits", layout)


def _written(names, logits, write=_as_published):
    return lambda path: write(path, names, logits)


REFUSED = {
    "no HDF5": (lambda path: path.write_text("no"), "cannot be read as HDF5"),
    "empty": (lambda path: h5py.File(path, "w").close(), "holds nothing; it must hold"),
    "linked": (_linked, "which is a group or leads elsewhere"),
    "soft": (_soft, "which is a group or leads elsewhere"),
    "virtual": (_virtual, "which is a group or leads elsewhere"),
    "integers": (_written(IDS, np.zeros((5, 3, 8), int)), r"strong_logits of int64 \["),
    "clips": (_written(IDS, np.zeros((5, 3))), r"strong_logits of float64 \[5, 3\]"),
    "fewer": (_written(IDS[:4], _logits()), "holds 4 names and 5 rows of logits"),
    "classes": (_written(IDS, _logits(classes=4)), "of 4 classes in 8 frames, and the"),
    "turned": (_written(IDS, _logits(5, 8, 3)), "3 classes; it is transposed"),
    "shapes": (
        _written("ab", [np.ones((3, 8), "f2"), np.ones((3, 9), "f2")], _by_name),
        "logits of different shapes",
    ),
    "probabilities": (
        _written(IDS, 1 / (1 + np.exp(-_logits()))),
        "only numbers from 0 to 1",
    ),
}


@pytest.mark.parametrize(("write", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_file_is_refused(tmp_path, write, text):
    _as_published(tmp_path / "e.hdf5", IDS, _logits())
    write(tmp_path / "f.hdf5")
    with pytest.raises(ValueError, match=text):
        import_frame_logits(tmp_path / "f.hdf5", tmp_path / "s", **ABOUT)
    assert not (tmp_path / "s").exists()


def test_without_h5py_it_says_what_to_install(tmp_path, monkeypatch):
    file = _as_published(tmp_path / "e.hdf5", IDS, _logits())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="is HDF5, which needs the package h5py; pip"):
        import_frame_logits(file, tmp_path / "s", **ABOUT)


@pytest.mark.slow
def test_the_recipe_imports_the_published_file(tmp_path):
    labels, frames = audioset_strong_labels(), 250
    logits = _logits(2, len(labels), frames)
    _as_published(tmp_path / "e.hdf5", ["Yabcdefgh", "Y--aE2O5G5WE"], logits)
    rows = [f"{i}_0\t0.0\t1.0\t/m/05tny_" for i in ("abcdefghmmm", "--aE2O5G5WE")]
    head = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel"
    (tmp_path / "strong.tsv").write_text("\n".join([head, *rows]) + "\n")

    def run(*words):
        found = subprocess.run(
            [sys.executable, RECIPE, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return found.stdout + found.stderr

    assert "s: 2 clips" in run("e.hdf5", "s", "--events", "strong.tsv")
    store = LogitsStore(tmp_path / "s")
    assert store.clip_ids() == ["abcdefghmmm", "--aE2O5G5WE"]
    assert store.manifest.labels_sha256 == labels.sha256
    assert store.manifest.frame_seconds == 0.04
    assert np.array_equal(store.logits(np.arange(2)), logits.astype(np.float32))
    assert "give LOGITS.npy INDEX.pkl STORE, or LOG" in run("e.hdf5", "i.pkl", "s")
