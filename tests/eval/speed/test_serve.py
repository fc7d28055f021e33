"""`vlm bench serve` loads a server of its own and says whether its limits are kept."""

import json
from pathlib import Path

import pytest

from eval.speed.serve_clients import Tally
from vlm import cli


def test_p99_is_what_99_of_100_answers_took_at_most() -> None:
    tally = Tally()
    for number in range(200):
        tally.add(200, float(number))
    tally.add(429, 1000.0)
    assert tally.p99(200) == 198.0
    assert tally.statuses == {"200": 200, "429": 1}
    assert tally.p99(500) == float("inf")


@pytest.mark.slow
def test_the_command_measures_every_figure_beside_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    options = ("--seconds", "1", "--stream-seconds", "2", "--requests", "200", "--json", str(path))
    assert cli.main(["bench", "serve", *options]) == 0
    rows = json.loads(path.read_text())["rows"]
    names = {row["name"] for row in rows}
    load = {"steady", "crowd of 256", "good and bad", "disconnects", "64 streams"}
    assert names == {*load, "throughput"}
    for row in rows:
        assert row["ours"] > 0 and row["peer"] > 0
