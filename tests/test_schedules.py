"""Schedules are the published ones, epoch for epoch."""

import json

import pytest
from golden_vectors import GOLDEN

from efficientat_plugin.training.schedules import TemperatureRampDown, WarmupRampDown


@pytest.mark.parametrize("name", ["audioset_kd", "fine_tune"])
def test_learning_rate_is_the_published_one(name):
    golden = json.loads((GOLDEN / "schedules.json").read_text())[name]
    arguments = golden["args"]
    schedule = WarmupRampDown(
        1.0,
        arguments["warm_up_len"],
        arguments["ramp_down_start"],
        arguments["ramp_down_len"],
        arguments["last_lr_value"],
    )
    factors = [schedule(epoch) for epoch in range(len(golden["factor_by_epoch"]))]
    assert factors == pytest.approx(golden["factor_by_epoch"], abs=1e-12)


def test_no_warm_up_starts_on_the_plateau():
    assert WarmupRampDown(2.0, warmup_epochs=0)(0) == 2.0


def test_temperature_falls_to_one_and_stays():
    schedule = TemperatureRampDown()
    assert [schedule(epoch) for epoch in (0, 1, 28, 29, 30, 199)] == [
        30,
        29,
        2,
        1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"ramp_down_epochs": 0}, "ramp_down_epochs=0"),
        ({"last_factor": 2.0}, "last_factor=2.0"),
    ],
)
def test_learning_rate_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        WarmupRampDown(1.0, **settings)


def test_temperature_refuses():
    with pytest.raises(ValueError, match="start=0.5"):
        TemperatureRampDown(start=0.5)
