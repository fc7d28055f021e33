import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from eval.baselines import Majority, Request
from eval.predict import Prediction, predict, read_predictions
from eval.questions import EvalQuestion
from eval.report import (
    DataFacts,
    ModelFacts,
    Run,
    build_report,
    markdown,
    terminal_table,
    write_report,
)


def answer_by_picture(requests: Sequence[Request]) -> list[str]:
    """Reads the answer out of the picture; without one, says yes."""
    return [images[0].decode() if images else "yes" for images, _ in requests]


QUESTIONS = [
    EvalQuestion("a#0", "is it red?", (b"yes",), "existence", ("yes",)),
    EvalQuestion("a#1", "is it blue?", (b"no",), "existence", ("no",)),
    EvalQuestion("b#0", "how many?", (b"2",), "count", ("2",)),
    EvalQuestion("c#0", "how many?", (b"2",), "count", ("2",)),
    EvalQuestion("d#0", "how many?", (b"2",), "count", ("3",)),
]
RUN = Run(
    model=ModelFacts(
        folder="runs/m", stage="finetune", weights_sha256={"w": "ab"}, seed=3, commit="c1"
    ),
    data=DataFacts(folder="shards/test", manifest_sha256="cd", limit=None),
    majority_from=None,
    batch_size=2,
    max_tokens=8,
    device="cpu",
    commit="c2",
    versions={"torch": "2"},
    seconds=1.5,
)


@pytest.fixture
def predictions() -> list[Prediction]:
    return list(predict(QUESTIONS, answer_by_picture, chunk_questions=2))


def test_predictions_keep_the_order_and_score_both_ways(predictions: list[Prediction]) -> None:
    assert [p.key for p in predictions] == [q.key for q in QUESTIONS]
    assert [p.correct for p in predictions] == [1, 1, 1, 1, 0]
    assert [p.blind_correct for p in predictions] == [1, 0, 0, 0, 0]


def test_chunks_change_nothing(predictions: list[Prediction]) -> None:
    assert list(predict(QUESTIONS, answer_by_picture, chunk_questions=100)) == predictions


def test_report_puts_the_model_beside_its_baselines(predictions: list[Prediction]) -> None:
    report = build_report(predictions, Majority.of((p.type, p.answer) for p in predictions), RUN)
    assert (report.accuracy, report.blind_accuracy) == (0.8, 0.2)
    assert report.majority_accuracy == pytest.approx(3 / 5)
    assert list(report.types) == ["count", "existence"]
    count = report.types["count"]
    assert (count.num_questions, count.accuracy.value, count.blind.value) == (3, 2 / 3, 0)
    assert count.majority.value == 2 / 3
    assert count.accuracy.low < 2 / 3 < count.accuracy.high
    assert report.majority_answers == {"count": "2", "existence": "yes"}


def test_majority_counted_elsewhere_may_be_wrong_here(predictions: list[Prediction]) -> None:
    elsewhere = Majority.of([("count", "4"), ("existence", "no")])
    report = build_report(predictions, elsewhere, RUN)
    assert report.types["count"].majority.value == 0
    assert report.types["existence"].majority.value == 0.5


def test_written_files_agree(predictions: list[Prediction], tmp_path: Path) -> None:
    report = build_report(predictions, Majority.of((p.type, p.answer) for p in predictions), RUN)
    out = tmp_path / "new" / "report.json"
    write_report(out, report, predictions)
    content = json.loads(out.read_text())
    assert content["accuracy"] == 0.8
    assert content["run"]["data"]["manifest_sha256"] == "cd"
    assert content["run"]["model"]["weights_sha256"] == {"w": "ab"}
    assert (content["run"]["commit"], content["run"]["model"]["seed"]) == ("c2", 3)
    assert read_predictions(out.with_name("report.predictions.jsonl")) == predictions
    page = out.with_suffix(".md").read_text()
    assert page == markdown(report)
    assert "| all | 5 | 80.0 |" in page
    assert "`cd`" in page and "commit c2" in page


def test_a_bar_in_a_type_does_not_break_the_table(predictions: list[Prediction]) -> None:
    odd = [p.model_copy(update={"type": "a|b"}) for p in predictions]
    page = markdown(build_report(odd, Majority.of([("a|b", "yes")]), RUN))
    assert "| a\\|b | 5 |" in page


def test_the_table_fits_into_eighty_columns(predictions: list[Prediction]) -> None:
    thousands = [p.model_copy(update={"type": "comparison"}) for p in predictions] * 2000
    report = build_report(thousands, Majority.of([("comparison", "yes")]), RUN)
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(terminal_table(report))
    assert "comparison" in captured.get() and "…" not in captured.get()
