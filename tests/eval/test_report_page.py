"""The HTML report, on made-up answers to questions about rendered scenes."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from eval.benchmark import find_benchmark
from eval.cards import OPEN_CHARACTERS, Said, card
from eval.finished_run import FinishedRun
from eval.items import Answer, Item, Picture
from eval.report import SIDES, Report, Side
from eval.report_page import write_page
from eval.scoring import Scored, majority_answers, score
from eval.selection import Selection, in_turns, margin

HOSTILE = "<script>alert('\"&')</script>"
Finish = Callable[..., Path]


@pytest.fixture
def finished(finish: Finish, scenes: Path, tmp_path: Path) -> FinishedRun:
    def answer(item: Item) -> str:
        return HOSTILE if item.type == "count" else item.answers[0]

    return FinishedRun.read(finish(tmp_path / "a.json", scenes, answer, f"runs/{HOSTILE}"))


@pytest.fixture
def html(finished: FinishedRun, tmp_path: Path) -> str:
    items = finished.scored.items
    sides: dict[Side, Scored] = {
        "model": finished.scored,
        "blind": score(finished.benchmark, items, [Answer("unseen", "unseen")] * len(items)),
        "majority": score(finished.benchmark, items, majority_answers(items, items)),
    }
    path = tmp_path / "page.html"
    write_page(path, report_of(finished), sides, finished.benchmark, finished.data)
    return path.read_text("utf-8")


def report_of(finished: FinishedRun) -> Report:
    return Report.model_validate_json(finished.path.read_text("utf-8"))


def text(html: str) -> str:
    """What a reader sees, blanks collapsed."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_every_text_is_escaped_and_every_address_is_a_picture(html: str) -> None:
    assert HOSTILE not in html and "<script" not in html
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert "url(" not in html and "@import" not in html


def test_the_head_has_the_headline_with_its_interval_and_baselines(
    html: str, finished: FinishedRun
) -> None:
    head = text(html.partition("</header>")[0].partition("<body>")[2])
    for side in ("model", "blind", "majority"):
        value, low, high = report_of(finished).overall.headline(side).numbers
        assert f"{100 * value:.1f} % 95 %: {100 * low:.1f}\N{EN DASH}{100 * high:.1f}" in head
    assert f"{len(finished.scored.items)} items" in head


def test_wrong_answers_stand_with_question_expected_given_and_blind(
    html: str, finished: FinishedRun
) -> None:
    wrong = html.split("<section>")[2]
    first = re.findall(r"<article>.*?</article>", wrong, re.DOTALL)[0]
    shown = text(first)
    item = next(item for item in finished.scored.items if f"{item.id} " in shown + " ")
    assert item.type == "count" and item.question in shown
    assert f"expected {item.answers[0]}" in shown and f"model {HOSTILE}" in shown
    assert "blind unseen" in shown and "<img" in first and 'aria-label="wrong"' in first
    num_wrong = sum(item.type == "count" for item in finished.scored.items)
    assert f"of {num_wrong} that are not wholly right" in text(wrong)


def test_the_receipt_has_all_that_a_figure_depends_on(html: str) -> None:
    receipt = text(html.partition("<section class=receipt>")[2])
    for fact in (
        "max tokens: 32",
        "c1",
        "cpu, float32, batches of 2",
        "torch 2",
        "tile size px 24",
        "user: <image> is it red?",
        "vlm eval runs/m --data test",
    ):
        assert fact in receipt


def test_equal_runs_give_equal_pages(finished: FinishedRun, tmp_path: Path) -> None:
    sides: dict[Side, Scored] = {side: finished.scored for side in SIDES}
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for path in pages:
        write_page(path, report_of(finished), sides, finished.benchmark, finished.data)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def item(name: str, kind: str = "all", picture: str | None = None, **fields: object) -> Item:
    images = (Picture(picture, bytes),) if picture else ()
    return Item(name, "?", images, type=kind, **fields)  # type: ignore[arg-type]


def test_types_take_turns_and_a_picture_is_shown_once() -> None:
    items = [item("0", "a", "p"), item("1", "a", "p"), item("2", "a", "q"), item("3", "b", "r")]
    assert in_turns(items, [0, 1, 2, 3], 3) == [0, 3, 2]
    assert in_turns(items, [1, 0], 3) == [1]


def test_sure_mistakes_come_first() -> None:
    choices = {"choices": ("x", "y"), "correct": (0,)}
    unsure = Answer("y", "y", 1, (-1.0, -0.9))
    sure = Answer("y", "y", 1, (-9.0, -0.1))
    items = [item(str(n), **choices) for n in range(2)]
    assert margin(items[0], sure) == pytest.approx(8.9)
    benchmark = find_benchmark("shards")
    scored = score(
        benchmark,
        [item("0", answers=("x",), **choices), item("1", answers=("x",), **choices)],
        [unsure, sure],
    )
    assert Selection.of(scored).wrong == [1, 0]


def test_a_long_text_is_folded_and_loses_nothing() -> None:
    words = " ".join(map(str, range(400)))
    html = card(item("0", answers=("x",)), [Said("model", Answer(words, words), 0.0)])
    assert "more characters</summary>" in html
    shown = re.sub(r"<details><summary>.*?</summary>|</details>", "", html)
    assert words in shown and len(words) > OPEN_CHARACTERS


def test_a_picture_that_cannot_be_read_is_told() -> None:
    broken = Item("0", "?", (Picture("p", lambda: b"no picture"),), answers=("x",))
    html = card(broken, [Said("model", Answer("", ""), 0.3)])
    assert "<figure class=bad>" in html and "<i>nothing</i>" in html and "30 %" in html
