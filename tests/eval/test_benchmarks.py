"""Every benchmark that comes with us runs from its published files to its report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from picture_benchmarks import BENCHMARK_WRITERS
from text_benchmarks import TEXT_BENCHMARK_WRITERS

import vlm
from eval.benchmark import benchmark_names, find_benchmark
from eval.run import EvalConfig, evaluate, predictions_path
from eval.sandbox import code_execution_allowed
from eval.zero_shot import TASKS

WRITERS = {**BENCHMARK_WRITERS, **TEXT_BENCHMARK_WRITERS}
SHORT = ("decoding.max_tokens=4",)
NOT_HERE = {"shards", "mm_vet"}
# Those of the encoder stage are in test_zero_shot.py.
NAMES = [name for name in benchmark_names() if find_benchmark(name).ask not in TASKS]


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_HERE))
def test_a_benchmark_runs_from_its_files_to_its_report(
    name: str, model: vlm.Model, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "report.json"
    data.mkdir()
    WRITERS[name](data)
    benchmark = find_benchmark(name, SHORT)
    with code_execution_allowed():  # what the tiny model writes is no program
        evaluation = evaluate(model, benchmark, data, out, EvalConfig(batch_size=4))
        again = evaluate(model, benchmark, data, tmp_path / "again.json", EvalConfig(batch_size=1))
    report = json.loads(out.read_text())
    assert report["benchmark"] == name and report["overall"]["num_items"] > 0
    values = [figure["value"] for figure in report["overall"]["figures"]["model"].values()]
    assert any(value is not None for value in values)
    for one, other in zip(evaluation.scored.answers, again.scored.answers, strict=True):
        # Sums of rows of other lengths differ in their last bits.
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        assert replace(other, logprobs=()) == replace(one, logprobs=())


def test_likelihoods_that_were_cut_off_are_completed_to_the_same_bytes(
    model: vlm.Model, tmp_path: Path
) -> None:
    data, whole, cut = tmp_path / "data", tmp_path / "whole.json", tmp_path / "cut.json"
    data.mkdir()
    WRITERS["sugarcrepe"](data)
    benchmark = find_benchmark("sugarcrepe")
    config = EvalConfig(batch_size=4)
    evaluate(model, benchmark, data, whole, config)
    lines = predictions_path(whole).read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        predictions_path(cut).write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        evaluate(model, benchmark, data, cut, config)
        assert predictions_path(cut).read_bytes() == predictions_path(whole).read_bytes()
