"""`vlm bench score` compares the same answers, and refuses to time sides that differ."""

import json
from pathlib import Path

import pytest
import torch

from eval.speed.score import Comparison, Load
from vlm import cli

TINY = ("bench", "score", "--size", "tiny", "--repeats", "1", "--device", "cpu")
LOAD = Load(num_prompts=2, prompt_tokens=9, num_choices=3, choice_tokens=4)


def test_the_command_measures_both_batch_sizes_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "score.json"
    assert cli.main([*TINY, "--prompt-tokens", "9", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["setting"]) for row in rows] == [
        (f"4 choices, {picture} picture", f"tiny batch {size} float32 cpu")
        for size in (1, 8)
        for picture in ("new", "seen")
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"]) and row["ours"] > 0
    assert "batch 8: log probabilities of 4 tokens differ by at most" in capsys.readouterr().out


def test_alone_everything_is_run_for_every_answer_and_together_once() -> None:
    sides = Comparison("tiny", LOAD, torch.device("cpu"), "float32")
    pictures: list[int] = []
    rows: list[int] = []
    sides.network.encoder.register_forward_pre_hook(lambda _, args: pictures.append(len(args[0])))
    sides.network.decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    sides.alone(None)
    assert (pictures, rows) == ([2, 2, 2], [2, 2, 2])
    sides.together(sides.new_scorer())
    assert (pictures[3:], rows[3:]) == ([2], [2])
    sides.alone(sides.seen)
    assert (pictures[4:], rows[4:]) == ([2], [2, 2, 2])
    sides.together(sides.seen)
    assert (pictures[5:], rows[7:]) == ([], [2])


def test_sides_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = Comparison("tiny", LOAD, torch.device("cpu"), "float32")
    sides.check()
    told = sides.alone(None)
    monkeypatch.setattr(sides, "alone", lambda scorer: [told[0] + 1e-3, *told[1:]])
    with pytest.raises(RuntimeError, match="the answers differ"):
        sides.check()
