"""The quickstart's report: one HTML page that needs nothing else and runs nothing."""

import base64
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from data.charts import linear_axis
from data.page import page
from eval.charts import strip, strip_scale
from eval.intervals import Figure
from eval.page_parts import STYLE, interval, mark, pairs, shown, tile
from eval.report import SIDES, Report
from training.charts import Curve, chart
from training.config import StageName
from training.stages import STAGES

SPLITS = ("train", "validation")
# Validation figures, each 0..1, that a chart shows where a stage has both.
SHARES = (
    (
        "recall@1",
        {"image_to_text_recall@1": "image to text", "text_to_image_recall@1": "text to image"},
    ),
    ("right", {"turn_accuracy": "whole turns", "token_accuracy": "tokens"}),
)


@dataclass(frozen=True)
class StageResult:
    """A finished stage; `metrics` are the records of its metrics.jsonl."""

    name: StageName
    steps: int
    final_loss: float
    seconds: float
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class ShownQuestion:
    """A question, the expected answer, and what the model said."""

    type: str
    question: str
    answer: str
    prediction: str
    correct: bool


@dataclass(frozen=True)
class ShownScene:
    """A held-out picture (a PNG file), the model's caption and the true one, and questions."""

    picture: bytes
    caption: str
    true_caption: str
    questions: tuple[ShownQuestion, ...]


def write_html(
    path: Path,
    stages: Sequence[StageResult],
    evaluation: Report,
    scenes: Sequence[ShownScene],
    seconds: float,
    seed: int,
) -> None:
    """Write the page.

    Args:
        seconds: what the whole run took.
    """
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}, {platform.system()})"
    path.write_text(report_page(stages, evaluation, scenes, seconds, seed, machine), "utf-8")


def report_page(
    stages: Sequence[StageResult],
    evaluation: Report,
    scenes: Sequence[ShownScene],
    seconds: float,
    seed: int,
    machine: str,
) -> str:
    """The page as text; equal arguments give equal pages."""
    head = _head(evaluation, seconds, seed, machine)
    sections = (_table(evaluation), _stages(stages), _scenes(scenes))
    body = "\n".join((head, *sections, _what_next(evaluation, scenes)))
    return page("vlm quickstart", body, _STYLE)


def _head(report: Report, seconds: float, seed: int, machine: str) -> str:
    row, run = report.overall, report.run
    tiles = "".join(
        tile(name, label, _percent(figure), f"95 %: {interval(figure)}<br>{meaning}")
        for name, label, figure, meaning in (
            ("model", "the model", row.headline(), "sees the picture"),
            ("blind", "blind", row.headline("blind"), "the same model, picture withheld"),
            ("majority", "majority", row.headline("majority"), "the usual answer of each type"),
        )
    )
    commit, _, changed = (run.commit or "not known").partition("-")
    facts = {
        "total time": _duration(seconds),
        "machine": machine,
        "device": run.device,
        "seed": seed,
        "commit": commit[:12] + (" with local changes" if changed else ""),
        "test data": run.data.sha256[:12],
    }
    versions = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    return (
        f"<header><p class=eyebrow>vlm quickstart</p>"
        f"<h1>{_percent(row.headline())} of {row.num_items:,} held-out questions answered right"
        f"</h1><p class=lead>A vision-language model, trained from random weights in "
        f"{_duration(seconds)}, asked about pictures that it had never seen.</p>"
        f"<div class=tiles>{tiles}</div><dl class=facts>{pairs(facts)}</dl>"
        f"<p class=quiet>Measured with {escape(versions)}.</p></header>"
    )


def _table(report: Report) -> str:
    rows = []
    for name, row in report.rows:
        figures = {str(side): row.headline(side) for side in SIDES}
        rows.append(
            f"<tr{' class=all' if row is report.overall else ''}>"
            f"<th scope=row>{escape(name)}</th><td>{row.num_items:,}</td>"
            f"<td class=strip>{strip(figures)}</td>{''.join(map(_cell, figures.values()))}</tr>"
        )
    source = report.run.majority_from
    counted = escape(source.folder) if source else "these questions"
    return (
        "<section><h2>What it can answer</h2><div class=scroll><table><thead><tr>"
        "<th scope=col>questions</th><th scope=col>n</th>"
        f"<th scope=col class=strip>{strip_scale()}</th>"
        "<th scope=col><i class='dot model'></i>model</th>"
        "<th scope=col><i class='dot blind'></i>blind</th>"
        "<th scope=col><i class='dot majority'></i>majority</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><p class=quiet>Percent of right answers, "
        "with 95 % intervals below and as bars. Blind: the same model and questions, no "
        f"picture. Majority: a type's most frequent answer, counted on {counted}.</p>"
        "</section>"
    )


def _cell(figure: Figure) -> str:
    return f"<td>{shown(figure.value)}<small>{interval(figure)}</small></td>"


def _stages(stages: Sequence[StageResult]) -> str:
    rows = "".join(_stage(number, stage) for number, stage in enumerate(stages, 1))
    return f"<section><h2>How it learned</h2>{rows}</section>"


def _stage(number: int, stage: StageResult) -> str:
    facts = {
        "trains": ", ".join(STAGES[stage.name].trained),
        "steps": f"{stage.steps:,}",
        "time": _duration(stage.seconds),
        "final loss": f"{stage.final_loss:.3f}",
    }
    unit = "" if stage.name == "encoder" else ", nats per token"
    training, validation = (_points(stage.metrics, split, "loss") for split in SPLITS)
    if validation:
        facts["validation loss"] = f"{validation[-1][1]:.3f}"
    curves = [Curve("training", training, dots=False), Curve("validation", validation, dots=True)]
    charts = chart(f"loss{unit}", stage.name, curves, stage.steps)
    for title, names in SHARES:
        shares = {
            label: [(x, 100 * y) for x, y in _points(stage.metrics, "validation", key)]
            for key, label in names.items()
        }
        if all(shares.values()):
            facts |= {f"{title}, {label}": f"{p[-1][1]:.1f} %" for label, p in shares.items()}
            curves = [Curve(label, points, dots=True) for label, points in shares.items()]
            title = f"{title} on validation, percent"
            charts += chart(title, stage.name, curves, stage.steps, linear_axis(100))
    return (
        f"<article class=stage><div><h3><i>{number}</i>{stage.name}</h3>"
        f"<p class=quiet>{escape(STAGES[stage.name].objective)}</p>"
        f"<dl>{pairs(facts)}</dl></div>{charts}</article>"
    )


def _points(metrics: Sequence[dict[str, Any]], split: str, key: str) -> list[tuple[float, float]]:
    records = [record for record in metrics if record["split"] == split and key in record]
    return [(r["step"], r[key]) for r in records if isfinite(r[key])]


def _scenes(scenes: Sequence[ShownScene]) -> str:
    cards = "".join(_scene(scene) for scene in scenes)
    return (
        "<section><h2>What it says about pictures it has never seen</h2>"
        f"<div class=grid>{cards}</div></section>"
    )


def _scene(scene: ShownScene) -> str:
    picture = base64.b64encode(scene.picture).decode()
    right = sum(question.correct for question in scene.questions)
    same = scene.caption.split() == scene.true_caption.split()
    expected = "" if same else f"<small>expected: {escape(scene.true_caption)}</small>"
    rows = "".join(map(_question, sorted(scene.questions, key=lambda question: question.type)))
    return (
        f'<article class=scene><div class=top><img src="data:image/png;base64,{picture}" '
        f'alt="{escape(scene.true_caption)}"><div><span class=eyebrow>its caption</span>'
        f"<p>{mark(same)}{_compared(scene.caption, scene.true_caption)}</p>{expected}</div></div>"
        f"<ul>{rows}</ul><footer>{right} of {len(scene.questions)} right</footer></article>"
    )


def _question(question: ShownQuestion) -> str:
    said = escape(question.prediction) or "<i>nothing</i>"
    expected = "" if question.correct else f"<small>expected: {escape(question.answer)}</small>"
    return (
        f"<li{'' if question.correct else ' class=wrong'}>{mark(question.correct)}"
        f"<span>{escape(question.question)} <small>{escape(question.type)}</small></span>"
        f"<b>{said}{expected}</b></li>"
    )


def _compared(written: str, expected: str) -> str:
    """What was written, the words that differ from what was expected marked."""
    words = written.split()
    matcher = SequenceMatcher(None, words, expected.split(), autojunk=False)
    pieces = []
    for kind, start, end, _, _ in matcher.get_opcodes():
        text = escape(" ".join(words[start:end]))
        if text:
            pieces.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return " ".join(pieces) or "<i>nothing</i>"


def _what_next(report: Report, scenes: Sequence[ShownScene]) -> str:
    model, data = shlex.quote(report.run.model.folder), shlex.quote(report.run.data.folder)
    out = Path(report.run.model.folder).parent
    asked = [question.question for scene in scenes for question in scene.questions]
    question = shlex.quote(asked[0] if asked else "how many shapes are there?")
    commands = {
        "Ask about a picture: save one from this page as picture.png, or draw your own.": (
            f"vlm ask {model} picture.png {question}"
        ),
        "Look through the held-out pictures with their questions.": f"vlm shards show {data}",
        "Measure again, with every answer in a file.": f"vlm eval {model} --data {data}",
        "Compare the stages in TensorBoard.": f"tensorboard --logdir {shlex.quote(str(out))}",
        "Spend more on the same story.": (
            f"vlm quickstart --minutes 30 --out {shlex.quote(f'{out}-30-minutes')}"
        ),
    }
    items = "".join(
        f"<li>{escape(purpose)}<pre><code>{escape(command)}</code></pre></li>"
        for purpose, command in commands.items()
    )
    return (
        f"<section><h2>What to try next</h2><ul class=next>{items}</ul>"
        "<p class=quiet>Under uv, write <code>uv run</code> before each.</p></section>"
    )


def _percent(figure: Figure) -> str:
    return f"{shown(figure.value)} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


_STYLE = (
    STYLE
    + """
footer { color: var(--quiet); font-size: 12.5px; }
.stage, .scene { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.first { color: var(--model); }
.second { color: var(--blind); }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.second .line { stroke-dasharray: 4 3; }
.stage { display: grid; grid-template-columns: 210px 1fr 1fr; gap: 1.2rem; padding: 1.1rem;
  margin-bottom: .8rem; }
.stage h3 i { display: inline-grid; place-items: center; width: 1.6em; height: 1.6em;
  margin-right: .5em; border-radius: 50%; background: var(--model); color: var(--card);
  font-size: .85rem; font-style: normal; }
.stage dl { margin-top: .6rem; }
.stage dl div { display: flex; justify-content: space-between; gap: .8rem; font-size: 13px;
  border-top: 1px solid var(--line); padding: .12rem 0; font-variant-numeric: tabular-nums; }
.stage dd { text-align: right; }
figure { margin: 0; min-width: 0; }
figure > svg { display: block; width: 100%; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: 12.5px; }
figcaption b { width: 100%; }
figcaption svg { width: 26px; height: 10px; margin-right: .35em; }
div.grid { columns: 330px; column-gap: .9rem; }
.scene { break-inside: avoid; margin-bottom: .9rem; overflow: hidden; }
.top { display: flex; gap: .9rem; padding: .9rem; }
.top p, .top small { display: block; margin-bottom: .3rem; line-height: 1.4; }
img { flex: none; width: 144px; height: 144px; object-fit: contain; image-rendering: pixelated; }
mark { background: var(--tint); color: var(--wrong); text-decoration: underline wavy 1px;
  text-underline-offset: 3px; }
.scene ul, .next { list-style: none; margin: 0; padding: 0; }
.scene li { display: grid; grid-template-columns: 1.1em 1fr auto; gap: .5rem; align-items: baseline;
  padding: .22rem .9rem; border-top: 1px solid var(--line); font-size: 13.5px; line-height: 1.35; }
.scene li .mark { margin: 0; }
.scene li > b { text-align: right; max-width: 8.5rem; }
.scene li b small { display: block; }
.scene li.wrong { background: var(--tint); }
li.wrong > b { color: var(--wrong); }
.scene footer { border-top: 1px solid var(--line); padding: .4rem .9rem; }
@media (max-width: 860px) { .stage { grid-template-columns: 1fr; } }
"""
)
