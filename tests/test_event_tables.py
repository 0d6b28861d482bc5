"""Tables of events and label tracks: the same events, read from every form."""

import json
import logging
import random

import pandas
import pytest

from efficientat_plugin import Event, read_events
from efficientat_plugin.data.events.event_forms import FORMS
from efficientat_plugin.data.labels import LabelTable

EVENTS = {
    "a": [Event("Dog", 0.5, 1.5), Event("Speech", 1.25, 3.0)],
    "b": [Event("Speech", 0.0, 10.0)],
}
HEADER = "filename\tonset\toffset\tevent_label\n"
RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\t"
    "High Freq (Hz)\tBegin File\tFile Offset (s)\tAnnotation\n"
)


def rows_of(line, suffix=".wav"):
    """A line of each event."""
    return [
        line.format(file=clip + suffix, clip=clip, **event._asdict())
        for clip, events in EVENTS.items()
        for event in events
    ]


def raven_rows():
    """Two lines of each selection, of two sounds that were opened together."""
    begins = {"a": 0.0, "b": 60.0}
    number, lines = 0, []
    for clip, events in EVENTS.items():
        for label, start, end, _ in events:
            number += 1
            begin, last = begins[clip] + start, begins[clip] + end
            lines += [
                f"{number}\t{view} 1\t1\t{begin}\t{last}\t0.0\t8000.0\t{clip}.wav\t"
                f"{start}\t{label}\n"
                for view in ("Waveform", "Spectrogram")
            ]
    return lines


DCASE = "{file}\t{start_seconds}\t{end_seconds}\t{label}\n"
TEXTS = {
    "dcase.tsv": HEADER + "".join(rows_of(DCASE)),
    "no_header.tsv": "".join(rows_of(DCASE)),
    "confidence.tsv": "filename\tonset\toffset\tevent_label\tconfidence\n"
    + "".join(rows_of(DCASE[:-1] + "\t\n")),
    "windows.tsv": "\ufeff" + (HEADER + "".join(rows_of(DCASE))).replace("\n", "\r\n"),
    "commas.csv": "File;Start Time (s);End Time (s);Label\n"
    + "".join(rows_of("{file};{start_seconds};{end_seconds};{label}\n")).replace(
        ".5", ",5"
    ),
    "quoted.csv": '"sound","begin","stop","class"\n'
    + "".join(rows_of('"./{file}","{start_seconds}","{end_seconds}","{label}"\n')),
    "columns.csv": "label,note,end,start,clip_id\n"
    + "".join(rows_of("{label},x,{end_seconds},{start_seconds},{clip}\n")),
    "raven.txt": RAVEN + "".join(raven_rows()),
    "lines.jsonl": "".join(
        json.dumps({"file": f"{clip}.wav", **event._asdict()}) + "\n"
        for clip, events in EVENTS.items()
        for event in events
    ),
}


def write(folder, text, name="events.tsv"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def reasons(table):
    return {each.reason: each.num_rows for each in table.left_out}


@pytest.mark.parametrize("name", TEXTS)
def test_every_form_of_table_gives_the_same_events(name, tmp_path):
    table = read_events(write(tmp_path, TEXTS[name], name))
    assert table.events == EVENTS
    assert (table.weak, table.left_out, table.empty) == ({}, [], [])
    assert table.classes == ["Dog", "Speech"]


def test_parquet_and_durations_give_the_same_events(tmp_path):
    rows = [
        {"file": f"{clip}.flac", "offset": start, "duration": end - start, "tag": label}
        for clip, events in EVENTS.items()
        for label, start, end, _ in events
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert read_events(tmp_path / "a.parquet").events == EVENTS
    assert read_events(tmp_path / "a.csv").events == EVENTS


def test_label_tracks_of_a_folder_are_named_after_their_sounds(tmp_path):
    write(tmp_path, "0.5\t1.5\tDog\n\\\t-1.0\t6334.5\n1.25\t3.0\tSpeech\n", "a.wav.txt")
    write(tmp_path, "0.000000\t10.000000\tSpeech\r\n", "b.txt")
    write(tmp_path, "", "deep/c.txt")
    write(tmp_path, "nonsense", ".hidden.txt")
    write(tmp_path, "The labels of our sounds.\n", "README.txt")
    table = read_events(tmp_path)
    assert table.events == EVENTS | {"deep/c": []}
    assert reasons(table) == {"files that are no label tracks": 1}
    assert table.left_out[0].names == ("README.txt",)


def test_a_single_track_keeps_quotes_and_spaces_of_labels(tmp_path):
    path = write(tmp_path, '0.5\t1\t12" drum, "loud"\n2\t3\t \n', "drums.txt")
    table = read_events(path)
    assert table.events == {"drums": [Event('12" drum, "loud"', 0.5, 1.0)]}
    assert reasons(table) == {"events without a class": 1}


def test_a_track_may_have_spaces_for_tabs(tmp_path):
    path = write(tmp_path, "0.5  1.5 Dog bark\n", "a.txt")
    assert read_events(path).events == {"a": [Event("Dog bark", 0.5, 1.5)]}


def test_selection_tables_without_files_are_named_after_their_sounds(tmp_path):
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tSpecies\n"
    row = "1\tSpectrogram 1\t1\t0.5\t1.5\tDog\n"
    write(tmp_path, header + row, "a.Table.1.selections.txt")
    write(tmp_path, header, "b.selections.txt")
    write(tmp_path, header + row, "c.BirdNET.selection.table.txt")
    table = read_events(tmp_path)
    dog = [Event("Dog", 0.5, 1.5)]
    assert table.events == {"a": dog, "b": [], "c": dog}


def test_each_view_of_a_selection_counts_once(tmp_path):
    path = write(tmp_path, TEXTS["raven.txt"], "raven.txt")
    assert read_events(path, merge=False).events == EVENTS


def test_tables_of_bird_detectors_are_selection_tables(tmp_path):
    text = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\t"
    text += "High Freq (Hz)\tCommon Name\tSpecies Code\tConfidence\tBegin Path\t"
    text += "File Offset (s)\n1\tSpectrogram 1\t1\t63.0\t66.0\t0\t15000\tMallard\t"
    text += "mallar3\t0.9\tC:\\birds\\b.wav\t3.0\n"
    table = read_events(write(tmp_path, text, "all.txt"), clip_ids=["birds/b"])
    assert table.events == {"birds/b": [Event("Mallard", 3.0, 6.0, 0.9)]}


def test_files_opened_together_without_offsets_are_reported(tmp_path, caplog):
    text = "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tLabel\n"
    text += "1\t0.5\t1.5\ta.wav\tDog\n2\t61\t62\tb.wav\tDog\n"
    table = read_events(write(tmp_path, text, "r.txt"))
    assert table.events["b"] == [Event("Dog", 61.0, 62.0)]
    assert "has no column File Offset (s)" in caplog.text


def test_audiosets_segments_are_joined_by_video(tmp_path):
    text = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    text += "b0RFKhbpFJA_30000\t0.000\t10.000\t/m/03m9d0z\n"
    text += "Y__p-iA312kg_70000\t0.1\t0.2\t/m/07rwj3x\n"
    text += "aaaaaaaaaaa_0\t0\t1\t/m/dog\naaaaaaaaaaa_9000\t2\t3\t/m/dog\n"
    path = write(tmp_path, text)
    events = read_events(path).events
    assert [*events] == ["b0RFKhbpFJA", "__p-iA312kg", "aaaaaaaaaaa_0"] + [
        "aaaaaaaaaaa_9000"
    ]
    names = LabelTable(["/m/03m9d0z"], ["Wind"])
    table = read_events(path, classes=names, clip_ids=["Yb0RFKhbpFJA", "other"])
    assert table.events == {"Yb0RFKhbpFJA": [Event("Wind", 0.0, 10.0)]}
    assert reasons(table) == {"rows of sounds that are not there": 3}


def test_the_video_is_found_in_the_names_of_other_tables(tmp_path):
    path = write(tmp_path, HEADER + "Yb0RFKhbpFJA_30000.wav\t0\t1\tDog\n")
    assert [*read_events(path, form="audioset").events] == ["b0RFKhbpFJA"]
    assert [*read_events(path).events] == ["Yb0RFKhbpFJA_30000"]


def test_confidences_of_annotators_become_events_or_stay(tmp_path):
    text = "0\t1\tbirds\t0.9\n1\t2\tbirds\t0.6\n2\t3\tbirds\t0.2\n0\t1\tcar\t0.1\n"
    path = write(tmp_path, text, "park.txt")
    table = read_events(path)
    assert table.events == {"park": [Event("birds", 0.0, 2.0, 0.9)]}
    assert reasons(table) == {"events whose score is too low": 2}
    assert len(read_events(path, merge=False).events["park"]) == 4
    assert len(read_events(path, min_score=0.15).events["park"]) == 1
    assert read_events(path, form="audacity").classes == [
        *("birds 0.2", "birds 0.6", "birds 0.9", "car 0.1")
    ]
    with pytest.raises(ValueError, match="without a confidence from 0 to 1"):
        read_events(write(tmp_path, "0\t1\tcar\n"), form="maestro")


def test_weak_labels_stand_beside_events(tmp_path, caplog):
    weak = write(tmp_path, "filename\tevent_labels\na.wav\tDog,Speech\nb.wav\t\n")
    table = read_events(weak)
    assert table.weak == {"a": ["Dog", "Speech"]}
    assert table.only_weak == ["a"]
    assert (table.events, table.empty) == ({}, [])
    assert reasons(table) == {"sounds without a class": 1}
    assert "columns of times" not in caplog.text
    text = HEADER + "a.wav\t0\t1\tDog\na.wav\t\t\tCat\nb.wav\t\t\tCat\nc.wav\t\t\t\n"
    table = read_events(write(tmp_path, text))
    assert table.events == {"a": [Event("Dog", 0.0, 1.0)], "c": []}
    assert table.weak == {"a": ["Cat"], "b": ["Cat"]}
    assert (table.only_weak, table.empty) == (["b"], ["c"])


def test_a_table_without_times_is_reported(tmp_path, caplog):
    table = read_events(write(tmp_path, "file\tlabel\na.wav\tDog\n"))
    assert table.weak == {"a": ["Dog"]}
    assert "no columns of times" in caplog.text


LEFT_OUT = {
    "a.wav\t1\t\tDog": "events without an end",
    "a.wav\t\t1\tDog": "events without a start",
    "a.wav\t2\t2\tDog": "events of no length",
    "a.wav\t2\t1\tDog": "events that end before they start",
    "a.wav\t-1\t1\tDog": "events that start before their sound",
    "a.wav\t10\t11\tDog": "events that start after the end of their sound",
    "a.wav\t1\t2\t": "events without a class",
    "a.wav\t1\t2\tSiren": "rows of other classes",
    "z.wav\t1\t2\tDog": "rows of sounds that are not there",
    "\t1\t2\tDog": "rows without a sound",
    "b.wav\t\t\t": "rows without events, of sounds that have some",
}


@pytest.mark.parametrize("row", LEFT_OUT)
def test_what_is_no_event_is_counted_and_named(row, tmp_path, caplog):
    path = write(tmp_path, HEADER + "b.wav\t1\t2\tDog\n" + f"{row}\n" * 7)
    durations = {"a": 10.0, "b": 10.0}
    table = read_events(path, classes=["Dog"], durations=durations)
    assert table.events["b"] == [Event("Dog", 1.0, 2.0)]
    (left_out,) = table.left_out
    assert left_out.reason == LEFT_OUT[row]
    is_stated = left_out.reason.startswith("rows without events")
    assert left_out.num_rows == (1 if is_stated else 7)
    assert str(left_out) in caplog.text
    if left_out.reason == "rows of other classes":
        assert left_out.names == ("Siren (7)",)
    elif not is_stated:
        assert len(left_out.names) == 5
        assert str(left_out).endswith("and 2 more")
    # Annotated, and of the classes there are it holds none
    assert ("a" in table.events) == (left_out.reason == "rows of other classes")


def test_what_is_wrong_with_other_classes_does_not_matter(tmp_path):
    path = write(tmp_path, HEADER + "a\t3\t\tSiren\nb\t0\t1\tDog\n")
    table = read_events(path, classes=["Dog"])
    assert table.empty == ["a"]
    assert reasons(table) == {"rows of other classes": 1}


def test_labels_become_names_or_ids_if_names_repeat(tmp_path):
    path = write(tmp_path, HEADER + "a\t0\t1\t/m/2\n")
    for names, label in ((["Dog", "Bat"], "Bat"), (["Bat", "Bat"], "/m/2")):
        classes = LabelTable(["/m/1", "/m/2"], names)
        assert read_events(path, classes=classes).classes == [label]


def test_events_are_cut_at_the_end_of_their_sound(tmp_path):
    path = write(tmp_path, HEADER + "a.wav\t9\t10.02\tDog\n")
    assert read_events(path, durations={"a": 10.0}).events["a"][0].end_seconds == 10.0


def test_events_of_a_class_that_touch_become_one(tmp_path):
    rows = "a\t2\t3\tDog\na\t0\t1\tDog\na\t1\t2\tDog\na\t3.01\t4\tDog\na\t0\t4\tCat\n"
    path = write(tmp_path, HEADER + rows)
    assert read_events(path).events["a"] == [
        *(Event("Dog", 0.0, 3.0), Event("Cat", 0.0, 4.0), Event("Dog", 3.01, 4.0))
    ]
    assert len(read_events(path, merge=False).events["a"]) == 5


def test_times_in_milliseconds_are_refused_or_named_so(tmp_path):
    path = write(tmp_path, HEADER + "a.wav\t500\t1500\tDog\nb.wav\t0\t9000\tCat\n")
    durations = {"a": 10.0, "b": 10.0}
    with pytest.raises(ValueError, match="fit in milliseconds; pass unit='ms'"):
        read_events(path, durations=durations)
    expected = {"a": [Event("Dog", 0.5, 1.5)], "b": [Event("Cat", 0.0, 9.0)]}
    assert read_events(path, durations=durations, unit="ms").events == expected
    assert len(read_events(path, durations=durations, unit="s").left_out) == 1
    text = path.read_text().replace("onset", "onset_ms").replace("offset", "offset_ms")
    assert read_events(write(tmp_path, text), durations=durations).events == expected


@pytest.mark.parametrize(
    "name", ["x/a.wav", "a.flac", "/data/x/a.wav", "C:\\data\\x\\a.wav", "./x/a", "x/a"]
)
def test_names_find_clips_by_the_ends_of_paths(name, tmp_path):
    path = write(tmp_path, HEADER + f"{name}\t0\t1\tDog\n")
    assert [*read_events(path, clip_ids=["x/a", "y/b"]).events] == ["x/a"]


def test_names_that_could_mean_several_clips_mean_none(tmp_path):
    rows = HEADER + "a.wav\t0\t1\tDog\nb.wav\t0\t1\tDog\n"
    table = read_events(write(tmp_path, rows), clip_ids=["x/a", "y/a", "b"])
    assert [*table.events] == ["b"]
    rows = HEADER + "x/a.wav\t0\t1\tDog\ny/a.wav\t0\t1\tDog\nb.wav\t0\t1\tDog\n"
    table = read_events(write(tmp_path, rows), clip_ids=["a", "b"])
    assert [*table.events] == ["b"]
    rows = HEADER + "dog/recording01.wav\t0\t1\tDog\nb.wav\t0\t1\tDog\n"
    table = read_events(write(tmp_path, rows), clip_ids=["cat/recording01", "b"])
    assert [*table.events] == ["b"]


def test_the_start_of_a_segment_tells_clips_of_one_name_apart(tmp_path):
    rows = HEADER + "x/recording01_1.wav\t0\t1\tDog\n"
    clips = ["recording01_1", "recording01_2"]
    events = read_events(write(tmp_path, rows), clip_ids=clips).events
    assert [*events] == ["recording01_1"]


def test_accents_mean_the_same_in_either_unicode_form(tmp_path):
    path = write(tmp_path, HEADER + "cafe\u0301.wav\t0\t1\tSie\u0300cle\n")
    for clip in ("caf\u00e9", "cafe\u0301", "x/cafe\u0301"):
        events = read_events(path, clip_ids=[clip], classes=["si\u00e8cle"]).events
        assert events == {clip: [Event("si\u00e8cle", 0.0, 1.0)]}


def test_commas_read_as_points_are_reported(tmp_path, caplog):
    read_events(write(tmp_path, TEXTS["commas.csv"], "commas.csv"))
    assert "commas in column Start Time (s) are read as decimal points" in caplog.text


def test_the_summary_counts_everything(tmp_path):
    rows = "a\t0\t1\tDog\nb\t\t\t\nc\t\t\tCat\nd\t1\t\tDog\n"
    assert str(read_events(write(tmp_path, HEADER + rows))) == (
        "1 event in 2 clips, 1 of them without events, 1 clip with weak labels only, "
        "2 classes; left out events without an end (1): d Dog 1-?"
    )


REFUSED = {
    HEADER + "a.wav\tsoon\t1\tDog\n": "has 'soon' in column onset, which is not a time",
    HEADER + "a.wav\t0\tinf\tDog\n": "has 'inf' in column offset",
    HEADER + "a.wav\t0\t1\n": "has 3 fields, but its header has 4",
    HEADER: "has no rows",
    "": "is empty; if somebody looked for events",
    "filename\tonset\tonset\tlabel\na\t0\t1\tDog\n": "has 'onset' twice",
    "filename\tonset\tlabel\na\t0\tDog\n": "has a column of starts (onset), but none",
    "filename\tstart_frame\tend_frame\tlabel\na\t0\t1\tDog\n": "in frames or samples",
    "onset\toffset\tlabel\n0\t1\tDog\n": "name one with audio_column",
    "filename\tonset\toffset\na\t0\t1\n": "name one with label_column",
    "0\t1\tDog\n1\tCat\n": "line 2 of",
    HEADER + "a\0b\t0\t1\tDog\n": "is not UTF-8 text",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_table_of_events_is_refused(text, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as refusal:
        read_events(path)
    assert REFUSED[text] in str(refusal.value)


def test_what_fits_nothing_is_refused(tmp_path):
    path = write(tmp_path, HEADER + "a.wav\t0\t1\tDog\n")
    with pytest.raises(ValueError, match="none of the 1 sounds of events.tsv"):
        read_events(path, clip_ids=["b", "c"])
    with pytest.raises(ValueError, match=r"events of Dog \(1\), but none of the 1 cl"):
        read_events(path, classes=["Siren"])
    with pytest.raises(ValueError, match="no columns Begin Time"):
        read_events(write(tmp_path, "file\tlabel\na\tDog\n"), form="raven")
    with pytest.raises(FileNotFoundError, match="holds no label tracks"):
        read_events(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_events(tmp_path / "absent.tsv")
    with pytest.raises(ValueError, match="form='tags' must be one of auto"):
        read_events(path, form="tags")
    with pytest.raises(ValueError, match="unit='min' must be s or ms"):
        read_events(path, unit="min")


@pytest.mark.parametrize("seed", range(60))
def test_damaged_tables_give_a_sentence(seed, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    rng = random.Random(seed)
    tracks = {"track.txt": "0.5\t1.5\tDog\n\\\t-1\t5\n1\t3\tCat\t0.5\n"}
    name, text = rng.choice([*(TEXTS | tracks).items()])
    content = bytearray(text.encode())
    for _ in range(rng.randint(1, 8)):
        place, length = rng.randrange(len(content)), rng.randrange(9)
        chosen = [bytes([rng.randrange(256)]), b"\t", b"\n", b'"', b"", b"nan", b"-9"]
        chosen += [b"1e400", b"[", b"{}", b",", content[place : place + 9 * length]]
        content[place : place + rng.randrange(length + 1)] = rng.choice(chosen)
        content = content or bytearray(b"\n")
    path = tmp_path / name
    path.write_bytes(content)
    for form in ("auto", rng.choice(FORMS)):
        try:
            table = read_events(path, form=form, durations={"a": 10.0, "b": 10.0})
        except ValueError as refusal:
            assert str(refusal).isprintable()
        else:
            for events in table.events.values():
                assert all(0 <= e.start_seconds < e.end_seconds <= 10 for e in events)


NESTED = {
    "objects": [
        {"file": "a.wav", "events": [{"label": "Dog", "start": 0.5, "end": 1.5}]},
        {"file": "b.wav", "events": []},
    ],
    "lists": [
        {"file": "a.wav", "onset": [0.5], "offset": [1.5], "label": ["Dog"]},
        {"file": "b.wav", "onset": [], "offset": [], "label": []},
    ],
    "object": [
        {"file": "a.wav", "e": {"start": [0.5], "end": [1.5], "label": ["Dog"]}},
        {"file": "b.wav", "e": {"start": [], "end": [], "label": []}},
    ],
}


@pytest.mark.parametrize("name", NESTED)
def test_a_row_may_list_all_events_of_its_sound(name, tmp_path):
    write(tmp_path, json.dumps(NESTED[name]), "a.json")
    pandas.DataFrame(NESTED[name]).to_parquet(tmp_path / "a.parquet")
    for path in (tmp_path / "a.json", tmp_path / "a.parquet"):
        assert read_events(path).events == {"a": [Event("Dog", 0.5, 1.5)], "b": []}


def test_lists_of_different_lengths_are_refused(tmp_path):
    row = {"file": "a", "onset": [0, 1], "offset": [1], "label": ["Dog", "Cat"]}
    path = write(tmp_path, json.dumps([row]), "a.json")
    with pytest.raises(ValueError, match=r"onset \(2\), offset \(1\), label \(2\)"):
        read_events(path)
