"""An interrupted ``tag`` or ``embed`` resumes with the same command."""

import contextlib
import os

import numpy as np
import pytest
from command_line import write_sound

from efficientat_plugin.cli import inputs, resumed_output
from efficientat_plugin.cli.resumed_output import KeptResults, SoundFile
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.tagging.torch_tagger import AudioTagger

COMMANDS = {
    "tag": ("tag", "--batch-size", 2, "--format", "jsonl", "--output"),
    "embed": ("embed", "--output"),
}
SUFFIXES = [("tag", "jsonl"), ("embed", "npz"), ("embed", "parquet")]


@pytest.fixture
def interrupted_at(monkeypatch):
    """Interrupts a command at its n-th computation; returns the number of sounds each.

    ``embed`` also computes one embedding of silence, before any other.
    """

    def interrupt_at(command, number):
        computed = []
        method = "embed" if command == "embed" else "probabilities"
        compute = getattr(AudioTagger, method)

        def interrupted(self, sounds, *args, **options):
            computed.append(len(sounds) if command == "tag" else 1)
            if len(computed) == number:
                raise KeyboardInterrupt
            return compute(self, sounds, *args, **options)

        monkeypatch.setattr(AudioTagger, method, interrupted)
        return computed

    return interrupt_at


@pytest.mark.parametrize(("command", "suffix"), SUFFIXES)
def test_an_interrupted_run_resumes_to_the_same_bytes(
    run, five, tmp_path, interrupted_at, monkeypatch, command, suffix
):
    (five / "3b.wav").write_text("no sound")
    words, path = COMMANDS[command], tmp_path / f"resumed.{suffix}"
    alone = tmp_path / f"alone.{suffix}"
    assert run(*words, alone, five)[0] == 1
    whole = alone.read_bytes()
    alone.unlink()
    computed = interrupted_at(command, 2 if command == "tag" else 4)
    code, _, err = run(*words, path, five)
    assert code == 130 and "resume from there" in err
    assert not path.exists()
    kept = tmp_path / f"resumed.{suffix}.parts"
    assert kept.is_file()
    with open(kept, "ab") as file:
        file.write(b'["a line that was cut short')
    code, _, err = run(*words, path, five)
    assert code == 1 and "3b.wav: " in err and "1 of 6 inputs" in err
    # The batch, or sound, at which it was interrupted is computed twice, no other is.
    expected = [2, 2, 2, 1] if command == "tag" else [1] * (1 + 3 + 1 + 3)
    assert computed == expected
    if command == "embed":
        assert path.read_bytes() == whole
    assert not kept.exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        "five",
        path.name,
    ]


def test_results_are_found_by_any_name_of_the_folder(
    run, five, tmp_path, interrupted_at, monkeypatch
):
    words, path = COMMANDS["tag"], tmp_path / "x.jsonl"
    computed = interrupted_at("tag", 2)
    assert run(*words, path, five)[0] == 130
    monkeypatch.chdir(five)
    assert run(*words, path, ".")[0] == 0
    assert computed == [2, 2, 2, 1]


def test_each_long_sound_that_was_tagged_is_kept(
    run, five, tmp_path, interrupted_at, monkeypatch
):
    monkeypatch.setattr(inputs, "SHORT_SECONDS", 0.5)  # the last three are longer
    computed = interrupted_at("tag", 3)
    words = ("tag", five, "--output", tmp_path / "x.csv")
    assert run(*words)[0] == 130
    assert run(*words)[0] == 0
    assert computed == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("command", COMMANDS)
def test_sounds_of_one_name_in_other_folders_are_others(
    run, five, tmp_path, interrupted_at, monkeypatch, command
):
    other = tmp_path / "other"
    for number in range(5):  # as large as those, and as old
        write_sound(
            other / "five" / f"{number}.wav", 0.2 * (number + 1), seed=9 - number
        )
    for path in tmp_path.rglob("*.wav"):
        os.utime(path, ns=(0, 0))
    words, target, alone = COMMANDS[command], tmp_path / "x.npz", tmp_path / "alone.npz"
    monkeypatch.chdir(other)
    assert run(*words, alone, "five")[0] == 0
    monkeypatch.chdir(tmp_path)
    interrupted_at(command, 3)
    assert run(*words, target, "five")[0] == 130
    monkeypatch.chdir(other)
    assert run(*words, target, "five")[0] == 0
    assert target.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("is_corrupt", [False, True])
def test_what_changed_in_between_is_computed_again(
    run, tagger, five, tmp_path, interrupted_at, is_corrupt
):
    target, kept = tmp_path / "x.npz", tmp_path / "x.npz.parts"
    interrupted_at("embed", 5)
    assert run("embed", five, "--output", target)[0] == 130
    write_sound(five / "0.wav", 0.7, seed=9)
    (five / "1.wav").unlink()
    if is_corrupt:
        settings, *lines = kept.read_bytes().splitlines(keepends=True)
        kept.write_bytes(settings + b"[" * 100_000 + b"\n\xff\n" + b"".join(lines[1:]))
    assert run("embed", five, "--output", target)[0] == 0
    with np.load(target) as arrays:
        assert arrays["names"].tolist() == ["0.wav", "2.wav", "3.wav", "4.wav"]
        expected = [tagger.embed(five / name) for name in arrays["names"]]
        np.testing.assert_allclose(arrays["embeddings"], expected, atol=1e-6)


def test_results_of_other_settings_are_refused(run, five, tmp_path, interrupted_at):
    target, kept = tmp_path / "x.npz", tmp_path / "x.npz.parts"
    interrupted_at("embed", 4)
    words = ("embed", five, "--output", target)
    assert run(*words)[0] == 130
    code, _, err = run(*words, "--pooling", "max")
    assert code == 2 and "other settings (pooling); delete it" in err
    assert run(*words)[0] == 0
    assert run(*words, "--pooling", "max", "--sources", "b5, mel")[0] == 0
    code, _, err = run(*words, "--sources", "b99")
    assert code == 2 and "'b99' is not a source of this student" in err
    assert not kept.exists()


def test_how_tags_are_written_is_no_setting(run, five, tmp_path, interrupted_at):
    target = tmp_path / "x.jsonl"
    interrupted_at("tag", 2)
    words = ("tag", five, "--batch-size", 1, "--output", target)
    assert run(*words)[0] == 130
    assert run(*words, "--format", "jsonl", "--top", 1)[0] == 0
    assert len(target.read_text().splitlines()) == 5


NOT_OURS = {
    "text": (b"mine", "x.csv.parts does not begin with the settings of a run"),
    "lines": (b"mine\n" * 3, "does not begin with the settings of a run"),
    "list": (b"[1]\n", "does not begin with the settings of a run"),
    "nested": (b"[" * 100_000 + b"\n", "does not begin with the settings of a run"),
    "bytes": (b"\xff\n", "does not begin with the settings of a run"),
    "object": (b"{}\n", "has results of a run with other settings"),
    "folder": (None, "x.csv.parts is not a file; give another --output"),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_a_file_of_something_else_is_left_alone(run, five, tmp_path, kind):
    content, message = NOT_OURS[kind]
    kept = tmp_path / "x.csv.parts"
    kept.mkdir() if content is None else kept.write_bytes(content)
    code, _, err = run("tag", five, "--output", tmp_path / "x.csv")
    assert code == 2 and message in err and err.count("\n") == 1
    assert content is None or kept.read_bytes() == content


def test_a_link_that_somebody_planted_is_not_followed(run, five, tmp_path):
    (tmp_path / "x.csv.parts").symlink_to(tmp_path / "elsewhere")
    code, _, err = run("tag", five, "--output", tmp_path / "x.csv")
    assert code == 2 and "x.csv.parts is not a file" in err
    assert not (tmp_path / "elsewhere").exists()


def test_a_second_run_at_the_same_time_is_refused(run, five, tmp_path):
    target = tmp_path / "embeddings.npz"
    with contextlib.closing(KeptResults(tmp_path / "embeddings.npz.parts", {})):
        code, _, err = run("embed", five, "--output", target)
        assert code == 2 and "parts is in use by another run; wait for it" in err
    (tmp_path / "embeddings.npz.parts").unlink()
    assert run("embed", five, "--output", target)[0] == 0


def test_rows_are_returned_as_they_were_kept(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    sounds = [SoundFile(f"{number}\n\udcff.wav", 1, 1) for number in range(20)]
    for some in (slice(0, 20, 2), slice(1, 20, 2)):
        with contextlib.closing(KeptResults(tmp_path / "x", {"a": 1})) as kept:
            kept.add(sounds[some], rows[some])
    with contextlib.closing(KeptResults(tmp_path / "x", {"a": 1})) as kept:
        assert set(kept.done) == set(sounds)
        assert np.array_equal(list(kept.rows(sounds)), rows)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_is_a_sentence(run, five, tmp_path, monkeypatch):
    def open_full(path, mode):
        return open("/dev/full" if mode == "ab" else path, mode)

    (tmp_path / "x.csv.parts").touch()
    monkeypatch.setattr(resumed_output, "open", open_full, raising=False)
    code, _, err = run("tag", five, "--output", tmp_path / "x.csv")
    assert code == 2 and "x.csv.parts cannot be written (No space left" in err


def test_runs_that_write_one_file_each_write_all_of_it(tmp_path):
    target = tmp_path / "results.csv"
    with atomic_file(target) as first:
        first.write("first " * 1000)
        with atomic_file(target) as other:
            other.write("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first " * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
