import base64
import random
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data.shape_samples import png_bytes
from data.shapes import make_scene
from eval.benchmark import find_benchmark
from eval.items import Answer, Item
from eval.report import DataFacts, ModelFacts, Report, Run, Side, build_report
from eval.scoring import Scored, score
from training.quickstart_report import (
    ShownQuestion,
    ShownScene,
    StageResult,
    report_page,
    write_html,
)

HOSTILE = "<script>alert('\"&')</script>"
PICTURE = png_bytes(make_scene(random.Random(0)))
RUN = Run(
    model=ModelFacts(folder="my runs/q/finetune", stage="f", weights_sha256={}, seed=3, commit=""),
    data=DataFacts(
        folder="my runs/q/shards/test",
        sha256="d" * 64,
        num_items=16,
        limit=None,
        num_published=None,
    ),
    majority_from=None,
    benchmark={"name": "shards", "prompt": "{question}"},
    prompt="user: <image> q",
    preprocessing={"tile_size_px": 24},
    max_answer_tokens=8,
    num_cut=0,
    batch_size=2,
    device="cpu",
    dtype="float32",
    commit="0123456789abcdef-dirty",
    versions={"torch": "2.1", HOSTILE: HOSTILE},
    seconds=1.5,
)


class Outline(HTMLParser):
    """The tags of a page, its addresses and texts; each tag that opens must close in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def records(split: str, **figures: list[float]) -> list[dict[str, Any]]:
    """Records of a metrics file, 10 steps apart."""
    rows = [dict(zip(figures, row, strict=True)) for row in zip(*figures.values(), strict=True)]
    return [{"step": 10 * n, "split": split, **row} for n, row in enumerate(rows, 1)]


RECALLS = {"image_to_text_recall@1": [0.25, 0.875], "text_to_image_recall@1": [0.125, 0.75]}
STAGES = [
    StageResult("text", 20, 1.5, 4.0, records("train", loss=[6.0, 1.5])),
    StageResult(
        "encoder",
        20,
        0.5,
        75.0,
        [
            *records("train", loss=[3.0, 0.5], learning_rate=[1e-3, 1e-3]),
            *records("validation", loss=[3.1, 0.625], **RECALLS),
        ],
    ),
]
RIGHT = ShownQuestion("colour", "what colour is it?", "red", "red", True)
WRONG = ShownQuestion("count", f"how many {HOSTILE}?", f"2{HOSTILE}", f"3{HOSTILE}", False)
SCENE = ShownScene(PICTURE, f"a green dot {HOSTILE}", f"a red dot {HOSTILE}", (WRONG, RIGHT))


@pytest.fixture
def report() -> Report:
    kinds = ["count"] * 8 + [HOSTILE] * 8
    items = [Item(str(n), "q", type=kind, answers=("a",)) for n, kind in enumerate(kinds)]

    def side(*right: bool) -> Scored:
        answers = [Answer("", "a" if one else "b") for one in right]
        return score(find_benchmark("shards"), items, answers)

    sides: dict[Side, Scored] = {
        "model": side(*(n < 7 for n in range(8)), *(n < 6 for n in range(8))),
        "blind": side(*(n < 3 for n in range(8)), *(n < 4 for n in range(8))),
        "majority": side(*[True] * 8, *[False] * 8),
    }
    return build_report("packed questions", sides, RUN)


def page(report: Report, stages: list[StageResult] = STAGES, *scenes: ShownScene) -> str:
    return report_page(stages, report, scenes or (SCENE,), 341.4, 7, f"2 cores {HOSTILE}")


def text(html: str) -> str:
    """What a reader sees, blanks collapsed."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_the_page_needs_nothing_else_and_runs_nothing(report: Report) -> None:
    outline = Outline(page(report))
    assert [url[:22] for url in outline.urls] == ["data:image/png;base64,"]
    assert base64.b64decode(outline.urls[0][22:]) == PICTURE
    assert not {"script", "link", "iframe", "object"} & set(outline.tags)
    assert "url(" not in page(report) and "@import" not in page(report)


def test_every_text_is_escaped(report: Report) -> None:
    html = page(report)
    assert HOSTILE not in html and "<script" not in html
    # Version and its name, machine, type, question (also in a command), answer, prediction, and
    # both captions; one of them also describes the picture to those who cannot see it.
    assert text(html).count("alert(") == 10 and html.count("alert(") == 11


def test_the_head_tells_figures_time_machine_and_code(report: Report) -> None:
    head = text(page(report).partition("</header>")[0])
    for fact in (
        "81.2 % of 16 held-out questions",
        "blind 43.8 %",
        "majority 50.0 %",
        "5 min 41 s",
        "2 cores",
        "seed 7",
        "0123456789ab with local changes",
        "torch 2.1",
    ):
        assert fact in head


def test_the_table_has_each_type_with_intervals_then_all(report: Report) -> None:
    body = re.findall(r"<tbody>(.*)</tbody>", page(report), re.DOTALL)[0]
    rows = [text(re.sub(r"<svg.*?</svg>", "", row)) for row in body.split("</tr>")[:-1]]
    row = report.types["count"]
    _, low, high = row.headline().numbers
    count = f"count 8 87.5 {100 * low:.1f}\N{EN DASH}{100 * high:.1f} 37.5"
    assert [row for row in rows if row.startswith(count)]
    assert rows[-1].startswith("all 16 81.2") and len(rows) == 3


def test_each_stage_has_its_curves_and_last_figures(report: Report) -> None:
    first, second = re.findall(r"<article class=stage>.*?</article>", page(report), re.DOTALL)
    assert first.count("<figure>") == 1 and second.count("<figure>") == 2
    assert "validation" not in first and "final loss 1.500" in text(first)
    for fact in ("time 1 min 15 s", "validation loss 0.625", "image to text 87.5 %", "75.0 %"):
        assert fact in text(second)
    recall_chart = second.rpartition("<figure>")[2]
    assert "step 10: 25" in recall_chart and "step 20: 75" in recall_chart


def test_losses_that_are_no_numbers_are_left_out_of_the_curve(report: Report) -> None:
    metrics = records("train", loss=[2.0, float("nan"), float("inf"), 1.0])
    html = page(report, [StageResult("text", 40, 1.0, 4.0, metrics)])
    (path,) = re.findall(r'<g class=first><path class=line d="M([^"]*)"', html)
    assert path.count("L") == 1 and "nan" not in path


def test_a_run_of_one_step_and_no_scene_has_a_page(report: Report) -> None:
    stage = StageResult("text", 1, 3.0, 0.1, [{"step": 1, "split": "train", "loss": 3.0}])
    html = report_page([stage], report, (), 1.0, 0, "cpu")
    Outline(html)
    assert "vlm ask" in html


def test_answers_are_marked_by_words_and_signs_and_wrong_ones_show_what_was_expected(
    report: Report,
) -> None:
    html = page(report)
    items = re.findall(r"<li[^>]*>(?:(?!<li).)*?</li>", html.partition("class=scene")[2], re.DOTALL)
    right, wrong = items[:2]
    assert 'aria-label="right">&#10003;' in right and "expected" not in right
    assert 'aria-label="wrong">&#10007;' in wrong and "class=wrong" in wrong
    assert "<b>3&lt;script" in wrong and "expected: 2&lt;script" in wrong
    assert "1 of 2 right" in html


def test_the_words_of_a_caption_that_differ_are_marked(report: Report) -> None:
    html = page(report)
    assert "a <mark>green</mark> dot" in html and "expected: a red dot" in html
    exact = page(report, STAGES, replace(SCENE, caption=SCENE.true_caption))
    assert "<mark>" not in exact and "expected: a red dot" not in exact
    silent = page(report, STAGES, replace(SCENE, caption=""))
    assert "<i>nothing</i>" in silent


def test_commands_name_this_run_and_quote_its_paths(report: Report) -> None:
    commands = [unescape(c) for c in re.findall(r"<pre><code>(.*?)</code></pre>", page(report))]
    assert commands[0].startswith("vlm ask 'my runs/q/finetune' picture.png 'how many ")
    assert "vlm eval 'my runs/q/finetune' --data 'my runs/q/shards/test'" in commands
    assert "vlm quickstart --minutes 30 --out 'my runs/q-30-minutes'" in commands


def test_the_file_is_utf_8_and_names_this_machine(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(path, STAGES, report, [replace(SCENE, caption="\N{SNOWMAN}")], 10.0, 0)
    html = path.read_text("utf-8")
    assert "\N{SNOWMAN}" in html and re.search(r"\d+ CPU cores \(", html)
