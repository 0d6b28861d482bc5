"""TextGrids of Praat are read, in every form that it writes as text."""

import pytest

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_tables import read_events

# As in Praat's manual, "TextGrid file formats", with texts of our own
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.3
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "animals"
        xmin = 0
        xmax = 2.3
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "dog"
        intervals [3]:
            xmin = 1.25
            xmax = 2.3
            text = " the ""big"" cat! "
    item [2]:
        class = "IntervalTier"
        name = "people"
        xmin = 0
        xmax = 2.3
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2.3
            text = "speech"
    item [3]:
        class = "TextTier"
        name = "bell"
        xmin = 0
        xmax = 2.3
        points: size = 1
        points [1]:
            number = 1
            mark = "ding"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2.3
<exists>
3
"IntervalTier"
"animals"
0
2.3
3
0
0.5
""
0.5
1.25
"dog"
1.25
2.3
" the ""big"" cat! "
"IntervalTier"
"people"
0
2.3
1
0
2.3
"speech"
"TextTier"
"bell"
0
2.3
1
1
"ding"
"""
# What Praat reads as well: comments, and words of any kind between the values
FREE = SHORT.replace("0.5\n1.25", "from 0.5 s [1] to ! not 9\n 1.25").replace(
    "\n", "\r\n"
)
EXPECTED = [
    Event("speech", 0.0, 2.3),
    Event("dog", 0.5, 1.25),
    Event('the "big" cat!', 1.25, 2.3),
]


def _written(folder, text, encoding="utf-8", name="a.TextGrid"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize("text", [LONG, SHORT, FREE], ids=["long", "short", "free"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["auto", "textgrid"])
def test_intervals_with_a_text_are_events(tmp_path, text, encoding, form):
    table = read_events(_written(tmp_path, text, encoding), form=form)
    assert sorted(table.events["a"]) == sorted(EXPECTED)
    assert [*table.events] == ["a"] and len(table.left_out) == 1  # the bell


def test_other_letters_are_read(tmp_path):
    path = _written(tmp_path, LONG.replace("dog", "Häher 鸟"), "utf-16")
    assert "Häher 鸟" in {event.label for event in read_events(path).events["a"]}


def test_a_tier_is_chosen_by_its_name(tmp_path):
    path = _written(tmp_path, LONG)
    table = read_events(path, label_column="people")
    assert table.events == {"a": [Event("speech", 0.0, 2.3)]}
    with pytest.raises(ValueError, match="no tier birds; its tiers are animals, "):
        read_events(path, label_column="birds")


@pytest.mark.parametrize(
    "text",
    [
        LONG.replace("<exists>", "<absent>"),
        LONG.split("    item [2]")[0]
        .replace("size = 3\nitem", "size = 1\nitem")
        .replace('"dog"', '""')
        .replace('" the ""big"" cat! "', '" "'),
    ],
)
def test_a_sound_without_texts_is_empty(tmp_path, text):
    table = read_events(_written(tmp_path, text))
    assert table.events == {"a": []} and table.empty == ["a"]


def test_a_folder_is_read_with_label_tracks_beside(tmp_path):
    _written(tmp_path, LONG)
    _written(tmp_path, SHORT, name="b.wav.TextGrid")
    (tmp_path / "c.txt").write_text("0.5\t1.0\tdog\n")
    table = read_events(tmp_path)
    assert {*table.events} == {"a", "b", "c"}
    assert sorted(table.events["b"]) == sorted(EXPECTED)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LONG[: LONG.index("text = ")], "is no complete TextGrid"),
        (
            SHORT.replace('"animals"', "3"),
            "has 3 where a TextGrid has a text in",
        ),
        (
            SHORT.replace("0.5\n1.25", '"x"\n1.25'),
            'has "x" where a TextGrid has a num',
        ),
        (SHORT.replace("TextTier", "PitchTier"), "a tier of the kind PitchTier"),
        ("ooBinaryFile\x08TextGrid\x00\x00", "save it in Praat as a text file"),
    ],
)
def test_what_is_no_textgrid_is_refused(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_events(_written(tmp_path, text))


def test_a_broken_encoding_is_refused(tmp_path):
    (tmp_path / "a.TextGrid").write_bytes(LONG.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="is not UTF-16 text"):
        read_events(tmp_path / "a.TextGrid")
