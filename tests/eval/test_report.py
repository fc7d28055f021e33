import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.benchmark import BenchmarkConfig, find_benchmark
from eval.items import Answer, Item, Picture
from eval.predictions import Prediction
from eval.report import (
    DataFacts,
    ModelFacts,
    Report,
    Run,
    Side,
    build_report,
    further_figures,
    markdown,
    terminal_table,
    write_report,
)
from eval.scoring import majority_answers, read_answers, score

SHARDS = find_benchmark("shards")
RUN = Run(
    model=ModelFacts(
        folder="runs/m", stage="finetune", weights_sha256={"w": "ab"}, seed=3, commit="c1"
    ),
    data=DataFacts(folder="shards/test", sha256="cd", num_items=5, limit=None, num_published=9),
    majority_from=None,
    benchmark={"name": "shards", "prompt": "{question}", "rule": "text"},
    prompt="user: <image> is it red?",
    preprocessing={"tile_size_px": 24},
    max_answer_tokens=8,
    num_cut=0,
    batch_size=2,
    device="cpu",
    dtype="float32",
    commit="c2",
    versions={"torch": "2"},
    seconds=1.5,
)


def item(name: str, question: str, answer: str, kind: str) -> Item:
    return Item(name, question, (Picture(name, bytes),), answers=(answer,), type=kind)


ITEMS = [
    item("a#0", "is it red?", "yes", "existence"),
    item("a#1", "is it blue?", "no", "existence"),
    item("b#0", "how many?", "2", "count"),
    item("c#0", "how many?", "2", "count"),
    item("d#0", "how many?", "3", "count"),
]


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, text) for text in texts]


def report_of(items: list[Item], model: list[Answer], counted: list[Item] | None = None) -> Report:
    sides: dict[Side, Any] = {
        "model": score(SHARDS, items, model),
        "blind": score(SHARDS, items, answers(*["yes"] * len(items))),
        "majority": score(SHARDS, items, majority_answers(items, counted or items)),
    }
    return build_report("packed questions", sides, RUN)


@pytest.fixture
def report() -> Report:
    return report_of(ITEMS, answers("yes", "no", "2", "2", "2"))


def value(row: Any, side: Side = "model") -> float:
    return row.headline(side).value


def test_the_model_stands_beside_its_baselines(report: Report) -> None:
    assert report.headline == "accuracy" and report.sides == ["model", "blind", "majority"]
    assert [value(report.overall, side) for side in report.sides] == [0.8, 0.2, 0.6]
    assert list(report.types) == ["count", "existence"]
    count = report.types["count"]
    assert (count.num_items, value(count), value(count, "blind")) == (3, 2 / 3, 0)
    assert value(count, "majority") == 2 / 3
    _, low, high = count.headline().numbers
    assert low < 2 / 3 < high


def test_the_majority_counted_elsewhere_may_be_wrong_here() -> None:
    elsewhere = [item("x", "?", "4", "count"), item("y", "?", "no", "existence")]
    report = report_of(ITEMS, answers("yes", "no", "2", "2", "2"), elsewhere)
    assert value(report.types["count"], "majority") == 0
    assert value(report.types["existence"], "majority") == 0.5


def test_the_majority_of_choices_is_a_place() -> None:
    items = [
        Item(str(n), "?", choices=("a", "b", "c")[: 3 - (n == 3)], correct=(right,))
        for n, right in enumerate((2, 2, 0, 1))
    ]
    found = majority_answers(items, items)
    assert [answer.choice for answer in found] == [2, 2, 2, 1]
    assert found[0].value == "c"


def test_of_an_unknown_type_the_majority_is_that_of_all() -> None:
    counted = [item("x", "?", "2", "count"), item("y", "?", "red", "a"), item("z", "?", "Red", "b")]
    (found,) = majority_answers([item("n", "?", "x", "new")], counted)
    assert found.value == "red"


@pytest.mark.parametrize(("normalise", "choice"), [("none", 0), ("tokens", 2), ("characters", 1)])
def test_the_likeliest_choice_is_chosen_by_the_measure_asked_for(
    normalise: str, choice: int
) -> None:
    config = BenchmarkConfig.model_validate(
        {**SHARDS.model_dump(), "ask": "choose", "normalise": normalise}
    )
    one = Item("i", "?", choices=("ab", "abcdefghij", "abc"))
    prediction = Prediction(id="i", logprobs=(-1.0, -3.0, -2.0), num_tokens=(1, 4, 4))
    (answer,) = read_answers(config, [one], [prediction])
    assert answer.choice == choice and answer.value == one.choices[choice]
    assert answer.logprobs == prediction.logprobs


def test_written_files_agree(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.json"
    write_report(out, report)
    assert Report.model_validate_json(out.read_text()) == report
    content = json.loads(out.read_text())
    assert content["run"]["data"]["sha256"] == "cd"
    assert (content["run"]["commit"], content["run"]["model"]["seed"]) == ("c2", 3)
    page = out.with_suffix(".md").read_text()
    assert page == markdown(report)
    assert "| all | 5 | 80.0 |" in page
    for fact in ("`cd`", "commit c2", "5 items of 9 published", "rule text", "<image> is it red?"):
        assert fact in page


def test_a_bar_in_a_type_does_not_break_the_table() -> None:
    odd = [item(str(n), "?", "yes", kind) for n, kind in enumerate(("a|b", "c"))]
    assert "| a\\|b | 1 |" in markdown(report_of(odd, answers("yes", "no")))


def test_one_type_alone_has_no_row_of_its_own() -> None:
    same = [item(str(n), "?", "yes", "only") for n in range(3)]
    assert report_of(same, answers("yes", "no", "no")).types == {}


def test_the_table_fits_into_eighty_columns() -> None:
    thousands = [
        replace(ITEMS[n % 5], id=str(n), answers=("yes",), type=("existence", "comparison")[n % 2])
        for n in range(10_000)
    ]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(terminal_table(report_of(thousands, answers(*["yes"] * 10_000))))
    assert "comparison" in captured.get() and "…" not in captured.get()


def test_a_figure_that_is_no_share_is_not_in_percent(report: Report) -> None:
    plain = report.model_copy(update={"plain": ("accuracy",)})
    assert plain.shown(plain.overall.headline())[0] == "0.8"
    assert report.shown(report.overall.headline())[0] == "80.0"
    assert further_figures(report) == {}
