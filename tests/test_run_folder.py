"""A folder holds one run: whatever changes a result makes another one."""

import functools
from pathlib import Path

import pytest
from speechbrain.utils.run_opts import RunOptions

from efficientat_plugin.data.digests import digest_of_clips, sounds_of
from efficientat_plugin.pretrained.description import identity_of_weights
from efficientat_plugin.support.differences import differences_of
from efficientat_plugin.support.options import option_places, read_yaml
from efficientat_plugin.support.run_folder import (
    SAME_RESULT,
    claim_folder,
    read_run,
    settings_of,
)

REPOSITORY = Path(__file__).resolve().parents[1]
YAMLS = sorted((REPOSITORY / "hparams").glob("*.yaml"))


def _another(value):
    """Of the same kind, if it can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    if isinstance(value, dict):
        return {**value, "more": 1}
    return f"{value}-other"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_key_of_a_yaml_makes_another_run_unless_it_is_listed(path):
    settings, document = settings_of(path, {}), read_yaml(path)
    others, listed = {}, {}
    for name, place in option_places(document).items():
        value = functools.reduce(lambda node, key: node[key], place, document)
        tag = getattr(value, "tag", None)
        if tag is not None and tag.value:
            continue  # an object is made of what is changed here, too
        kind = listed if SAME_RESULT & {*place} else others
        kind[name] = _another(value)
    different = differences_of(settings, settings_of(path, others))
    assert not {*others} - {each.name.split(".")[0] for each in different}
    different = differences_of(settings, settings_of(path, listed))
    # Of the teacher itself, recipes compare a digest.
    assert {each.name for each in different} <= {"teacher.model"}


def _given(**options):
    return RunOptions(**options, overridden_args=set(options))


@pytest.mark.parametrize("name", [*RunOptions().as_dict()])
def test_every_option_of_speechbrain_makes_another_run_unless_it_is_listed(name):
    if name == "overridden_args":
        return
    path = REPOSITORY / "hparams" / "mn10.yaml"
    settings = settings_of(path, {})
    default = getattr(RunOptions(), name)
    other = settings_of(path, {}, _given(**{name: _another(default)}))
    assert (settings == other) == (name in SAME_RESULT)
    if name not in settings:  # as it is anyway
        assert settings_of(path, {}, _given(**{name: default})) == settings


def test_both_values_are_named_and_nothing_is_written(tmp_path):
    run = {"lr": 0.1, "opt_class": {"lr": 0.1}, "loss": {"!new:a.Loss": {"k": None}}}
    claim_folder(tmp_path, run, started=False)
    before = (tmp_path / "run.json").stat()
    other = {"lr": 0.2, "opt_class": {"lr": 0.2}, "loss": {"!new:a.Loss": {"k": 3}}}
    with pytest.raises(ValueError) as refusal:
        claim_folder(tmp_path, other, started=True)
    assert str(refusal.value) == (
        f"{tmp_path} holds another run (lr 0.1 there, 0.2 here; loss.k null there, "
        "3 here); name another --output_folder, or give the values of that run to "
        "resume it"
    )
    assert (tmp_path / "run.json").stat() == before and read_run(tmp_path) == run


@pytest.mark.parametrize(
    ("there", "here", "text"),
    [
        ({"a": 1}, {}, "a 1 there, not set here"),
        ({}, {"a": [1, 2]}, "a not set there, [1, 2] here"),
        ({"s": {"!new:x.MN": ""}}, {"s": {"!new:x.DyMN": ""}}, "s x.MN there, x.DyMN"),
        ({"a": "\x1b[2J"}, {"a": "b" * 99}, f"a \\x1b[2J there, {'b' * 57}... here"),
    ],
)
def test_a_setting_that_only_one_run_has_makes_another_one(there, here, text):
    (found,) = differences_of(there, here)
    assert text in str(found)


@pytest.mark.parametrize(
    ("yaml", "epochs", "text"),
    [
        ("mn10", 300, None),
        ("quickstart", 16, None),
        ("mn10", 100, r"\(number_of_epochs 200 there, 100 here\); name"),
        (
            "cmkd_mutual",
            400,
            "_epochs 200 there, 400 here; warmup_epochs 8",
        ),
    ],
)
def test_more_epochs_are_the_same_run_where_the_schedule_allows(
    yaml, epochs, text, tmp_path
):
    path = REPOSITORY / "hparams" / f"{yaml}.yaml"
    claim_folder(tmp_path, settings_of(path, {}), started=False)
    longer = settings_of(path, {"number_of_epochs": epochs})
    if text is None:
        with pytest.raises(ValueError, match="number_of_epochs"):
            claim_folder(tmp_path, longer, started=True)
        claim_folder(tmp_path, longer, started=True, may_train_longer=True)
        assert read_run(tmp_path)["number_of_epochs"] == epochs
    else:
        with pytest.raises(ValueError, match=text):
            claim_folder(tmp_path, longer, started=True, may_train_longer=True)


def test_clips_are_distinguished_by_ids_labels_and_sound():
    rows = [{"audio": {"bytes": bytes([n]) * 9}} for n in range(3)]
    clips = ["a", "b", "c"], [[0], [], [1, 2]], sounds_of(rows)
    digest = digest_of_clips(*clips)
    others = [
        (["a", "c", "b"], *clips[1:]),
        (clips[0], [[0], [1], [2]], clips[2]),
        (*clips[:2], sounds_of(rows[::-1])),
    ]
    assert digest_of_clips(*clips) == digest
    assert len({digest_of_clips(*other) for other in others} | {digest}) == 4


def test_sound_is_the_same_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"RIFF")
    rows = [{"audio": {"bytes": None, "path": str(tmp_path / name)}} for name in "ab"]
    assert sounds_of(rows[:1]) == sounds_of(rows[1:])
    assert sounds_of(rows[:1]) == sounds_of([{"audio": {"bytes": b"RIFF"}}])
    assert sounds_of([{"audio": {"bytes": None, "path": "gone"}}]) != sounds_of(rows)


def test_weights_are_the_same_wherever_they_lie(tmp_path):
    assert identity_of_weights(None) is None
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.pt").write_bytes(content)
        (tmp_path / name / "student.ckpt").write_bytes(content)
        (tmp_path / name / "README.md").write_text(name)
    for suffix in ("", ".pt"):
        a, b, c = (identity_of_weights(tmp_path / f"{n}{suffix}") for n in "abc")
        assert a == b != c and "digest" in a


def test_a_damaged_record_of_a_run_is_named(tmp_path):
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(ValueError, match=r"run\.json, which has .* is corrupt"):
        claim_folder(tmp_path, {}, started=True)
