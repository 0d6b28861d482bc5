"""``efficientat tag`` prints what the tagger computes, and names unreadable files."""

import csv
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import (
    STATED,
    parsed,
    tags_of,
    write_sound,
)

from efficientat_plugin.cli import inputs, main
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.plain_text import shown


@pytest.mark.parametrize("to_file", [False, True])
@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_every_format_says_what_the_tagger_says(
    run, tagger, five, tmp_path, form, to_file
):
    target = tmp_path / "results"
    output = ["--output", target] if to_file else []
    code, out, _ = run("tag", five, "--top", 3, "--format", form, *output)
    assert code == 0
    if to_file:
        assert out == ""
        out = target.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.part"))
    found, atol = parsed(out, form)
    assert list(found) == [str(five / f"{number}.wav") for number in range(5)]
    for path, tags in found.items():
        expected = tags_of(tagger, path, 3)
        assert [name for name, _ in tags] == [name for name, _ in expected]
        for (_, one), (_, other) in zip(tags, expected, strict=True):
            assert one == pytest.approx(other, abs=atol)


@pytest.mark.parametrize("command", ["tag", "scan", "embed"])
def test_a_bad_file_does_not_stop_the_others(run, mixed_folder, tmp_path, command):
    output = tmp_path / ("found.npz" if command == "embed" else "found.jsonl")
    form = () if command == "embed" else ("--format", "jsonl")
    code, _, err = run(command, mixed_folder, *form, "--output", output)
    assert code == 1 and "4 of 6 inputs could not be read" in err
    for name in ("corrupt.wav", "empty.wav", "text.wav"):
        assert re.search(rf"{name}: not decodable: \S", err)
    assert re.search(r"loud.wav: it has samples .* full scale is 1; .* by 32768", err)
    assert "notes.txt" not in err and "Traceback" not in err
    if command == "embed":
        with np.load(output) as content:
            found = content["names"].tolist()
    else:
        sounds = [json.loads(line)["sound"] for line in output.read_text().splitlines()]
        found = [Path(path).relative_to(mixed_folder).as_posix() for path in sounds]
    assert found == ["below/also.flac.wav", "good.wav"]


@pytest.mark.parametrize("command", ["tag", "scan", "embed"])
def test_nothing_readable_leaves_what_was_there(run, mixed_folder, tmp_path, command):
    target = tmp_path / "results.npz"
    target.write_text("of before")
    for path in (*mixed_folder.rglob("*good*"), *mixed_folder.rglob("*also*")):
        path.unlink()
    code, _, err = run(command, mixed_folder, "--output", target)
    assert code == 2 and "nothing could be read" in err
    assert target.read_text() == "of before"
    assert not list(tmp_path.glob("*.part*"))


def test_what_is_not_there_is_named(run, mixed_folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    given = [tmp_path / "absent.wav", bare, pipe]
    code, _, err = run("tag", *given, mixed_folder / "good.wav")
    assert code == 1
    assert "absent.wav: there is no such file" in err
    assert "bare: the folder contains no sound" in err
    assert "pipe.wav: it is not a file" in err
    assert run("tag", *given)[0] == 2


def test_names_that_are_not_utf_8_are_reported(run, tmp_path):
    content = write_sound(tmp_path / "odd" / "a.wav", 0.1).read_bytes()
    try:
        with open(os.fsencode(tmp_path / "odd") + b"/\xff.wav", "wb") as file:
            file.write(content)
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    code, out, err = run("tag", tmp_path / "odd", "--format", "csv", "--top", 1)
    assert code == 1 and len(out.splitlines()) == 2
    assert r"\udcff.wav: its name is not UTF-8; rename it" in err


def test_a_sound_given_twice_is_tagged_once(run, five):
    _, out, _ = run("tag", five / "0.wav", five, "--format", "jsonl")
    assert len(out.splitlines()) == 5


def test_long_sounds_are_tagged_as_short_ones(run, five, monkeypatch):
    options = (five, "--format", "jsonl", "--batch-size", 3)
    _, short, _ = run("tag", *options)
    monkeypatch.setattr(inputs, "SHORT_SECONDS", 0.5)
    _, long, _ = run("tag", *options)
    one, other = parsed(short, "jsonl")[0], parsed(long, "jsonl")[0]
    assert list(one) == list(other)
    for path, tags in one.items():
        assert dict(tags) == pytest.approx(dict(other[path]), abs=1e-5)


def test_names_cannot_break_a_line_or_command_a_terminal(run, tmp_path):
    name = "a\tb\nc\x1b[31m\u202e,d.wav"
    write_sound(tmp_path / "odd" / name, 0.1)
    escaped = r"a\tb\nc\x1b[31m\u202e,d.wav"
    assert shown(name) == escaped
    for form in ("table", "csv"):
        _, out, _ = run("tag", tmp_path / "odd", "--top", 1, "--format", form)
        assert escaped in out and len(out.splitlines()) == 2
    rows = list(csv.DictReader(io.StringIO(out)))
    assert rows[0]["sound"].endswith(escaped)
    _, out, _ = run("tag", tmp_path / "odd", "--format", "jsonl")
    assert json.loads(out)["sound"].endswith(name)


def test_no_class_is_a_formula_or_commands_a_terminal(capsys, tmp_path, five):
    names = ["=HYPERLINK(A1)", "\x1b]0;mine\x07", "+1|x"]
    torch.save(MN(3, width=0.1).state_dict(), tmp_path / "three.pt")
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["index", "mid", "display_name"])
        table.writerows([k, f"@{k}()", name] for k, name in enumerate(names))
    options = ["--model", tmp_path / "three.pt", "--labels", tmp_path / "labels.csv"]
    options += ["--device", "cpu", "--format", "csv", *STATED]
    assert main(["tag", *map(str, [five / "0.wav", *options])]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["name"][0] for row in rows} == {"'", "\\"}
    assert {row["mid"] for row in rows} == {"'@0()", "'@1()", "'@2()"}


@pytest.mark.parametrize("start", ["-", "@", "+", "="])
def test_a_path_in_a_table_leads_to_its_file(
    capsys, model, tmp_path, monkeypatch, start
):
    monkeypatch.chdir(tmp_path)
    name = f"{start}a(b).wav"
    write_sound(tmp_path / name, 0.1)
    options = ["--model", str(model), "--top", "1", "--format", "csv"]
    assert main(["tag", *options, "--", name]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["sound"] == f"./{name}"
    assert (tmp_path / row["sound"]).is_file()


def test_a_name_that_stdout_lacks_is_escaped(run, tmp_path, monkeypatch):
    for name in ("a", "é", "z"):
        write_sound(tmp_path / f"{name}.wav", 0.1)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    code, *_ = run("tag", tmp_path, "--top", 1)
    sys.stdout.flush()
    lines = written.getvalue().decode("ascii").split("\n")
    found = [Path(line).name for line in lines if "wav" in line]
    assert code == 0 and found == ["a.wav", "z.wav", "\\xe9.wav"]


def test_the_published_checkpoint_finds_the_metro(shared, capsys):
    checkpoint = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    sound = shared / "audio" / "metro_station-paris.wav"
    options = ["--model", str(checkpoint), "--device", "cpu"]
    assert main(["tag", str(sound), *options]) == 0
    first = capsys.readouterr().out.splitlines()[1]
    probability, name = first.split(maxsplit=1)
    assert name == "Train" and float(probability) == pytest.approx(0.727, abs=0.01)
