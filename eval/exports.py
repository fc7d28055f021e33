"""Answers as the benchmark's own tools read them, beside ours."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.benchmark import BenchmarkConfig
from eval.formats.mt_bench import write_answers
from eval.items import Answer, Item


def write_export(
    benchmark: BenchmarkConfig,
    report: Path,
    items: Sequence[Item],
    answers: Sequence[Answer],
    model: str,
) -> Path | None:
    """Write the answers beside a report, for benchmarks whose tools read a form of their own.

    Args:
        model: what the model is called there.
    Returns:
        the file, None for other benchmarks.
    """
    if benchmark.format not in EXPORTS:
        return None
    suffix, write = EXPORTS[benchmark.format]
    path = report.with_suffix(suffix)
    write(path, items, answers, model)
    return path


def _mt_bench(path: Path, items: Sequence[Item], answers: Sequence[Answer], model: str) -> None:
    write_answers(path, items, answers, model, time.time())


def _humaneval(path: Path, items: Sequence[Item], answers: Sequence[Answer], model: str) -> None:
    """The samples of `evaluate_functional_correctness`."""
    with path.open("w", encoding="utf-8") as file:
        for item, answer in zip(items, answers, strict=True):
            row = {"task_id": item.group, "completion": answer.value}
            file.write(json.dumps(row) + "\n")


Writer = Callable[[Path, Sequence[Item], Sequence[Answer], str], None]
EXPORTS: dict[str, tuple[str, Writer]] = {
    "mt_bench": (".answers.jsonl", _mt_bench),
    "humaneval": (".samples.jsonl", _humaneval),
}
