"""Two sides are timed in turn, and the report has the shape that is promised."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from eval.speed.harness import (
    Row,
    SpeedReport,
    check_report_path,
    machine_facts,
    publish,
    time_in_turn,
    time_row,
)
from vlm.errors import UserError

CPU = torch.device("cpu")


def test_both_sides_are_warmed_up_and_take_turns_at_starting() -> None:
    called: list[str] = []
    time_in_turn(lambda: called.append("o"), lambda: called.append("p"), CPU, repeats=3)
    assert "".join(called) == "op" + "op" + "po" + "op"


def test_the_median_leaves_a_slow_call_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    # the warm-up of ours, then its three measured calls; the peer always takes 2 s
    durations = iter([50.0, 1.0, 30.0, 1.5])

    def ours() -> None:
        nonlocal now
        now += next(durations)

    def peer() -> None:
        nonlocal now
        now += 2.0

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert time_in_turn(ours, peer, CPU, repeats=3) == (1.5, 2.0)


def test_a_ratio_above_one_means_that_we_take_less_time() -> None:
    row = time_row("encode", "small", ours_s=0.5, peer_s=1.25)
    assert (row.ours, row.peer, row.ratio, row.unit) == (500, 1250, 2.5, "ms")


def test_the_report_holds_machine_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row(name="decode", setting="batch 4", ours=60, peer=48, ratio=1.25, unit="tokens/s")
    path = tmp_path / "report.json"
    publish(SpeedReport(machine={"cpu": "a CPU", "threads": 2}, rows=[row]), "transformers", path)
    assert json.loads(path.read_text()) == {
        "machine": {"cpu": "a CPU", "threads": 2},
        "rows": [
            {
                "name": "decode",
                "setting": "batch 4",
                "ours": 60,
                "peer": 48,
                "ratio": 1.25,
                "unit": "tokens/s",
            }
        ],
    }
    printed = capsys.readouterr().out
    for word in ("decode", "batch 4", "60", "transformers", "48", "1.25", "tokens/s", str(path)):
        assert word in printed


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish(SpeedReport(machine={}, rows=[]), "transformers", None)
    assert list(tmp_path.iterdir()) == []


def test_machine_facts_say_what_figures_depend_on_and_not_whose_machine_it_is() -> None:
    facts = machine_facts(CPU)
    assert facts["threads"] == torch.get_num_threads() and facts["torch"] == version("torch")
    assert {"cpu", "cores", "commit", "transformers"} <= set(facts) and "gpu" not in facts
    assert all(facts.values())
    assert platform.node() not in map(str, facts.values())


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "report.txt"):
        with pytest.raises(UserError, match=r"needed: a file that ends in \.json"):
            check_report_path(path)
    with pytest.raises(UserError, match="no report can be written"):
        check_report_path(tmp_path / "file" / "report.json")
    check_report_path(tmp_path / "new" / "report.json")
    assert (tmp_path / "new").is_dir()
