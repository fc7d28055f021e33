"""What is done about losses and gradients: counted, written down, and exact after a resumption."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from training.guards import SPIKES_FILE, Guards
from vlm.errors import UserError


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def falling_losses(count: int, seed: int = 0) -> list[float]:
    """Losses of a run that learns, with noise."""
    rng = random.Random(seed)
    return [2 * math.exp(-step / 200) + 0.5 + 0.1 * rng.gauss(0, 1) for step in range(count)]


def test_a_loss_far_above_the_usual_is_reported_with_its_samples(tmp_path: Path) -> None:
    guards = Guards(tmp_path, 3)
    for step, loss in enumerate(falling_losses(60), start=1):
        assert guards.watch_loss(step, loss, ["a", "b"]) is None
    usual = guards.watch_loss(61, 9.0, ["c", "d"])
    assert usual is not None and 1.8 < usual < 2.4
    (line,) = read(tmp_path / SPIKES_FILE)
    assert (line["step"], line["loss"], line["keys"]) == (61, 9.0, ["c", "d"])
    assert line["usual"] < line["limit"] < 9.0


def test_noise_a_fall_and_the_first_steps_are_no_spikes(tmp_path: Path) -> None:
    guards = Guards(tmp_path, 3)
    losses = [50.0, 3.0, *falling_losses(500), *[1e-4] * 50, *[1.005e-4] * 5]
    assert all(guards.watch_loss(*step, []) is None for step in enumerate(losses))
    assert not (tmp_path / SPIKES_FILE).exists()


def test_one_spike_does_not_hide_the_next(tmp_path: Path) -> None:
    guards = Guards(tmp_path, 3)
    for step, loss in enumerate([*falling_losses(60), *[9.0] * 5]):
        guards.watch_loss(step, loss, [])
    assert [line["step"] for line in read(tmp_path / SPIKES_FILE)] == [60, 61, 62, 63, 64]


def test_gradients_in_a_row_are_counted_anew_after_a_good_one(tmp_path: Path) -> None:
    guards = Guards(tmp_path, 3)
    norms = [1.0, math.inf, math.nan, 2.0, math.inf, math.inf]
    good = [guards.check_gradient(step, norm, ["k"]) for step, norm in enumerate(norms)]
    assert good == [True, False, False, True, False, False]
    assert guards.skipped == 4
    with pytest.raises(UserError, match=r"step 6 is nan, and 3 step\(s\) in a row .*samples: k "):
        guards.check_gradient(6, math.nan, ["k"])


def test_a_message_shows_some_samples_and_the_file_has_all(tmp_path: Path) -> None:
    keys = [f"key{number}" for number in range(20)]
    with pytest.raises(UserError, match=r"key0, .*key7 and 12 more \(.*bad_step.json has all\)"):
        Guards(tmp_path, 3).check_loss(4, math.inf, keys)
    assert read(tmp_path / "bad_step.json") == [{"step": 4, "loss": "inf", "keys": keys}]


def test_a_resumed_run_reports_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    losses = falling_losses(150)
    losses[70] = losses[130] = 8.0
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    for folder in (whole, first, second):
        folder.mkdir()
    guards = Guards(whole, 3)
    for step, loss in enumerate(losses):
        guards.watch_loss(step, loss, [])
    before = Guards(first, 3)
    for step, loss in enumerate(losses[:100]):
        before.watch_loss(step, loss, [])
    state = json.loads(json.dumps(before.state))
    for step, loss in enumerate(losses[100:], start=100):  # what the killed run did after it saved
        before.watch_loss(step, loss, [])
    after = Guards(first, 3)
    after.restore(state, 99)
    for step, loss in enumerate(losses[100:], start=100):
        after.watch_loss(step, loss, [])
    assert read(first / SPIKES_FILE) == read(whole / SPIKES_FILE)
    assert after.state == guards.state
