"""The command line runs programs and asks judges only if told to, and says so before it begins."""

import json
from pathlib import Path

import pytest
from text_benchmarks import humaneval_row, write_humaneval, write_lines, write_mt_bench

from eval.formats.mt_bench import read_answers
from vlm import cli

FLAG = "--allow-code-execution"


def vlm_eval(*arguments: object) -> int:
    return cli.main(["eval", *map(str, arguments)])


def test_programs_of_others_are_scored_when_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_humaneval(tmp_path)
    rows = [humaneval_row(number) for number in (0, 1, 2)]
    samples = [
        {"task_id": row["task_id"], "completion": completion}
        for row in rows
        for completion in (row["canonical_solution"], "    return 1\n")
    ]
    write_lines(tmp_path / "samples.jsonl", samples)
    command = [
        "score", "--benchmark", "humaneval", "--data", tmp_path,
        "--predictions", tmp_path / "samples.jsonl", "options.samples=2",
    ]  # fmt: skip
    assert vlm_eval(*command) == 2
    assert FLAG in capsys.readouterr().err
    assert vlm_eval(*command, FLAG, "--json", tmp_path / "figures.json") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["overall"]["figures"]
    # Of the first problem, which adds nothing, both are right.
    assert figures["pass@1"]["value"] == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_answers_in_fastchats_form_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mt_bench(tmp_path)
    rows = [
        {"question_id": number, "model_id": "m", "choices": [{"index": 0, "turns": [first, ""]}]}
        for number, first in ((81, "Fair."), (111, "4"))
    ]
    write_lines(tmp_path / "m.jsonl", rows)
    command = [
        "score", "--benchmark", "mt_bench", "--data", tmp_path,
        "--predictions", tmp_path / "m.jsonl", "--json", tmp_path / "figures.json",
    ]  # fmt: skip
    assert vlm_eval(*command) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["overall"]["figures"]
    assert figures["answered"]["value"] == 0.5
    assert vlm_eval(*command, "--judge-model", "gpt-4") == 2
    assert "--judge" in capsys.readouterr().err


def test_a_run_tells_mistakes_before_it_asks(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_humaneval(tmp_path)
    command = [model_folder, "--benchmark", "humaneval", "--data", tmp_path, "--out"]
    out = tmp_path / "report.json"
    assert vlm_eval(*command, out) == 2
    assert FLAG in capsys.readouterr().err
    assert vlm_eval(*command, out, FLAG, "--judge", "http://127.0.0.1:9/v1") == 2
    assert "nothing to grade" in capsys.readouterr().err
    assert not out.exists()


def test_answers_are_written_for_the_benchmarks_own_tools(
    model_folder: Path, tmp_path: Path
) -> None:
    write_mt_bench(tmp_path)
    write_humaneval(tmp_path)
    short = "decoding.max_tokens=4"
    out = tmp_path / "out.json"
    arguments = [model_folder, "--data", tmp_path, "--out", out, short, "--benchmark"]
    assert vlm_eval(*arguments, "mt_bench") == 0
    assert list(read_answers(tmp_path / "out.answers.jsonl")) == ["81", "111"]
    assert json.loads(out.read_text())["run"]["judge"] is None
    out.unlink()
    (tmp_path / "out.predictions.jsonl").unlink()
    assert vlm_eval(*arguments, "humaneval", FLAG) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.samples.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["HumanEval/0", "HumanEval/1", "HumanEval/2"]
