"""The quickstart's report: one HTML page that needs nothing else and runs nothing."""

import base64
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from math import floor, isfinite, log10
from pathlib import Path
from typing import Any, NamedTuple

from eval.metrics import Accuracy
from eval.report import Report, Row
from training.config import StageName
from training.stages import STAGES

# Validation figures, each 0..1, that a chart shows where a stage has both.
SHARES = (
    {"image_to_text_recall@1": "image to text recall@1", "text_to_image_recall@1": "text to image"},
    {"turn_accuracy": "turns wholly right", "token_accuracy": "tokens right"},
)
CHART_PX = (440, 236)
# Left, top, right and bottom of the plot in a chart.
PLOT_PX = (48, 30, 426, 202)
STRIP_PX = (200, 32)
STRIP_MARGIN_PX = 14
LOG_RATIO = 4  # losses that fall by more than this factor are drawn on a logarithmic axis
MAX_TICKS = 8


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
    body = "\n".join(
        (
            _head(evaluation, seconds, seed, machine),
            _table(evaluation),
            _stages(stages),
            _scenes(scenes),
            _what_next(evaluation, scenes),
        )
    )
    return _PAGE.format(style=_STYLE, body=body)


def _head(report: Report, seconds: float, seed: int, machine: str) -> str:
    row, run = report.overall, report.run
    tiles = "".join(
        f'<div class="tile {name}"><span>{label}</span><b>{_percent(figure)}</b>'
        f"<small>95 %: {_interval(figure)}<br>{meaning}</small></div>"
        for name, label, figure, meaning in (
            ("model", "the model", row.accuracy, "sees the picture"),
            ("blind", "blind", row.blind, "the same model, picture withheld"),
            ("majority", "majority", row.majority, "the usual answer of each type"),
        )
    )
    commit, _, changed = (run.commit or "not known").partition("-")
    facts = {
        "total time": _duration(seconds),
        "machine": machine,
        "device": run.device,
        "seed": seed,
        "commit": commit[:12] + (" with local changes" if changed else ""),
        "test data": run.data.manifest_sha256[:12],
    }
    versions = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    return (
        f"<header><p class=eyebrow>vlm quickstart</p>"
        f"<h1>{_percent(row.accuracy)} of {row.num_questions:,} held-out questions answered right"
        f"</h1><p class=lead>A vision-language model trained from nothing in {_duration(seconds)}, "
        f"asked about pictures that it had never seen.</p>"
        f"<div class=tiles>{tiles}</div><dl class=facts>{_pairs(facts)}</dl>"
        f"<p class=quiet>Measured with {escape(versions)}.</p></header>"
    )


def _table(report: Report) -> str:
    rows = "".join(
        f"<tr{' class=all' if row is report.overall else ''}><th scope=row>{escape(name)}</th>"
        f"<td>{row.num_questions:,}</td><td class=strip>{_strip(row)}</td>"
        f"{''.join(_cell(figure) for figure in (row.accuracy, row.blind, row.majority))}</tr>"
        for name, row in report.rows
    )
    source = report.run.majority_from
    counted = escape(source.folder) if source else "these questions"
    return (
        "<section><h2>What it can answer</h2><div class=scroll><table><thead><tr>"
        "<th scope=col>questions</th><th scope=col>n</th>"
        f"<th scope=col class=strip>{_strip_scale()}</th>"
        "<th scope=col><i class='dot model'></i>model</th>"
        "<th scope=col><i class='dot blind'></i>blind</th>"
        "<th scope=col><i class='dot majority'></i>majority</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div><p class=quiet>Percent of right answers, with 95 % "
        "Wilson intervals below and as bars. Blind: the same model and questions, no picture. "
        f"Majority: the most frequent answer of a question's type, counted on {counted}.</p>"
        "</section>"
    )


def _cell(figure: Accuracy) -> str:
    return f"<td>{100 * figure.value:.1f}<small>{_interval(figure)}</small></td>"


def _strip(row: Row) -> str:
    """Three figures as marks of different forms on one scale, with their intervals."""
    parts = []
    figures = {"majority": row.majority, "blind": row.blind, "model": row.accuracy}
    for (name, figure), y in zip(figures.items(), (26, 16, 6), strict=True):
        x, low, high = (_strip_x(value) for value in (figure.value, figure.low, figure.high))
        forms = {
            "model": f'<circle cx="{x}" cy="{y}" r="4.5"/>',
            "blind": f'<circle class=hollow cx="{x}" cy="{y}" r="3.5"/>',
            "majority": f'<rect x="{x - 3:.1f}" y="{y - 3}" width="6" height="6"/>',
        }
        parts.append(
            f"<g class={name}><title>{name}: {_percent(figure)}</title>"
            f'<path class=whisker d="M{low} {y}H{high}"/>{forms[name]}</g>'
        )
    grid = "".join(f"M{_strip_x(share)} 0V{STRIP_PX[1]}" for share in (0, 0.25, 0.5, 0.75, 1))
    return f'{_svg(STRIP_PX, "")}<path class=grid d="{grid}"/>{"".join(parts)}</svg>'


def _strip_scale() -> str:
    labels = "".join(
        f'<text x="{_strip_x(percent / 100)}" y="12" text-anchor="middle">{percent}</text>'
        for percent in (0, 25, 50, 75, 100)
    )
    return f"{_svg((STRIP_PX[0], 14), 'percent')}{labels}</svg>"


def _strip_x(share: float) -> float:
    return round(STRIP_MARGIN_PX + share * (STRIP_PX[0] - 2 * STRIP_MARGIN_PX), 1)


def _stages(stages: Sequence[StageResult]) -> str:
    rows = "".join(_stage(number, stage) for number, stage in enumerate(stages, 1))
    return f"<section><h2>How it learned</h2>{rows}</section>"


def _stage(number: int, stage: StageResult) -> str:
    validation = [record for record in stage.metrics if record["split"] == "validation"]
    last = validation[-1] if validation else {}
    shares = next((names for names in SHARES if names.keys() <= last.keys()), {})
    facts = {
        "trains": ", ".join(STAGES[stage.name].trained),
        "steps": f"{stage.steps:,}",
        "time": _duration(stage.seconds),
        "final loss": f"{stage.final_loss:.3f}",
    }
    if last:
        facts["validation loss"] = f"{last['loss']:.3f}"
    facts |= {label: f"{100 * last[key]:.1f} %" for key, label in shares.items()}
    unit = "" if stage.name == "encoder" else ", nats per token"
    lines = [_Line(split, _points(stage.metrics, split, "loss")) for split in _SPLITS]
    charts = [_chart(f"{stage.name}: loss{unit}", lines, stage.steps)]
    if shares and len(validation) > 1:
        of_shares = [
            _Line(label, [(x, 100 * y) for x, y in _points(stage.metrics, "validation", key)])
            for key, label in shares.items()
        ]
        title = f"{stage.name}: validation, percent"
        charts.append(_chart(title, of_shares, stage.steps, _linear_axis(100)))
    return (
        f"<article class=stage><div><h3><i>{number}</i>{stage.name}</h3>"
        f"<p class=quiet>{escape(STAGES[stage.name].objective)}</p>"
        f"<dl>{_pairs(facts)}</dl></div>{''.join(charts)}</article>"
    )


_SPLITS = ("train", "validation")


class _Line(NamedTuple):
    label: str
    points: list[tuple[float, float]]  # (step, value)


class _Axis(NamedTuple):
    """A scale from the first tick to the last."""

    ticks: list[float]
    log: bool

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the first tick, 1 at the last."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            return log10(value / low) / log10(high / low)
        return (value - low) / (high - low)


def _linear_axis(high: float) -> _Axis:
    """From 0 to at least `high`, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high or 1) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    count = next(n for n in range(1, 100) if n * step >= high * 0.999)
    return _Axis([n * step for n in range(count + 1)], log=False)


def _log_axis(low: float, high: float) -> _Axis:
    """Around `low` to `high`, ticks at 1, 2 and 5 times powers of ten, or at these alone."""
    powers = [10.0**n for n in range(floor(log10(low)), floor(log10(high)) + 2)]
    fine = [power * factor for power in powers for factor in (1, 2, 5)]
    inside = fine[
        max(i for i, tick in enumerate(fine) if tick <= low) : 1
        + next(i for i, tick in enumerate(fine) if tick >= high)
    ]
    return _Axis(inside if len(inside) <= MAX_TICKS else powers, log=True)


def _loss_axis(values: Sequence[float]) -> _Axis:
    low, high = min(values, default=0), max(values, default=1)
    return _log_axis(low, high) if 0 < low * LOG_RATIO < high else _linear_axis(high)


def _points(metrics: Sequence[dict[str, Any]], split: str, key: str) -> list[tuple[float, float]]:
    records = [record for record in metrics if record["split"] == split and key in record]
    return [(r["step"], r[key]) for r in records if isfinite(r[key])]


def _chart(title: str, lines: Sequence[_Line], steps: int, y_axis: _Axis | None = None) -> str:
    """A figure of values over steps; the first line is solid, the second dashed with dots."""
    y_axis = y_axis or _loss_axis([value for line in lines for _, value in line.points])
    x_axis = _linear_axis(steps)
    left, top, right, bottom = PLOT_PX
    # The last step ends the plot, wherever the next tick would be.
    x_ticks = [tick for tick in x_axis.ticks if tick <= steps]
    frame = "".join(
        f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        f'<path class=grid d="M{left} {y:.1f}H{right}"/>'
        for tick in y_axis.ticks
        for y in [bottom - y_axis.place(tick) * (bottom - top)]
    ) + "".join(
        f'<text x="{left + tick / steps * (right - left):.1f}" y="{bottom + 18}" '
        f'text-anchor="middle">{tick:g}</text>'
        for tick in x_ticks
    )
    drawn, keys = [], []
    for name, line in zip(("first", "second"), lines, strict=True):
        places = [
            (left + x / steps * (right - left), bottom - y_axis.place(y) * (bottom - top))
            for x, y in line.points
        ]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>step {step:g}: {value:.4g}</title>'
            "</circle>"
            for (x, y), (step, value) in zip(places, line.points, strict=True)
        )
        # Training has a point every few steps: dots would hide its line.
        dotted = dots if line.label != "train" or len(places) == 1 else ""
        if places:
            drawn.append(f'<g class={name}><path class=line d="M{path}"/>{dotted}</g>')
            keys.append(f"<span class={name}>{_KEY}{escape(line.label)}</span>")
    scale = " (log)" if y_axis.log else ""
    return (
        f"<figure><figcaption><b>{escape(title)}{scale}</b>{''.join(keys)}</figcaption>"
        f"{_svg(CHART_PX, f'{title} over steps')}{frame}{''.join(drawn)}"
        f'<text x="{right}" y="{CHART_PX[1] - 2}" text-anchor="end">step</text></svg></figure>'
    )


def _svg(size_px: tuple[int, int], label: str) -> str:
    named = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg viewBox="0 0 {size_px[0]} {size_px[1]}" {named}>'


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
        f"<p>{_mark(same)}{_compared(scene.caption, scene.true_caption)}</p>{expected}</div></div>"
        f"<ul>{rows}</ul><footer>{right} of {len(scene.questions)} right</footer></article>"
    )


def _question(question: ShownQuestion) -> str:
    said = escape(question.prediction) or "<i>nothing</i>"
    expected = "" if question.correct else f"<small>expected: {escape(question.answer)}</small>"
    return (
        f"<li{'' if question.correct else ' class=wrong'}>{_mark(question.correct)}"
        f"<span>{escape(question.question)} <small>{escape(question.type)}</small></span>"
        f"<b>{said}{expected}</b></li>"
    )


def _mark(correct: bool) -> str:
    name, sign = ("right", "&#10003;") if correct else ("wrong", "&#10007;")
    return f'<i class="mark {name}" role="img" aria-label="{name}">{sign}</i>'


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


def _pairs(facts: dict[str, Any]) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )


def _percent(figure: Accuracy) -> str:
    return f"{100 * figure.value:.1f} %"


def _interval(figure: Accuracy) -> str:
    return f"{100 * figure.low:.1f}&ndash;{100 * figure.high:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


_KEY = '<svg viewBox="0 0 26 10" aria-hidden="true"><path class=line d="M1 5H25"/></svg>'

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vlm quickstart</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#e3e3de, #33353a);
  --card: light-dark(#fff, #1d1f23); --quiet: light-dark(#63676e, #9aa0a8);
  --model: light-dark(#1f55c4, #82aaff); --blind: light-dark(#b2560d, #efa55c);
  --majority: light-dark(#70757d, #989da5); --right: light-dark(#177245, #63cf97);
  --wrong: light-dark(#c02f22, #ff8f80); --tint: light-dark(#fdf0ee, #3a2322); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 2.5rem 1.2rem 4rem;
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
  background: light-dark(#f6f6f2, #131417); color: light-dark(#1c1e21, #e8e8e4); }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.7rem); line-height: 1.15; letter-spacing: -.02em;
  margin: .2rem 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 3rem 0 1rem; }
h3 { font-size: 1.1rem; margin: 0; }
p { margin: 0; }
small, .quiet, footer { color: var(--quiet); font-size: 12.5px; }
small { font-weight: 400; }
.eyebrow { color: var(--quiet); font-size: 12px; font-weight: 600; letter-spacing: .07em;
  text-transform: uppercase; }
.lead { font-size: 1.1rem; color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: .8rem;
  margin: 1.6rem 0; }
.tile, .stage, .scene, .scroll { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tile { padding: .8rem 1.1rem; border-top: 4px solid var(--majority); }
.tile.model { border-top-color: var(--model); }
.tile.blind { border-top-color: var(--blind); }
.tile b { display: block; font-size: 2rem; line-height: 1.25; letter-spacing: -.02em; }
.tile small { display: block; }
dl { margin: 0; }
dt { color: var(--quiet); font-size: 12px; }
dd { margin: 0; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin-bottom: .8rem; }
.scroll { overflow-x: auto; margin-bottom: .7rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .45rem .9rem; text-align: right; font-weight: 400; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--quiet); font-size: 12.5px; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
tr.all > * { font-weight: 700; }
td small { display: block; font-size: 11.5px; line-height: 1.2; }
.strip { width: 36%; padding: 0 .5rem; }
.strip svg { display: block; width: 100%; }
.dot { display: inline-block; width: 9px; height: 9px; margin-right: .4em; border-radius: 50%;
  background: var(--model); }
.dot.blind { background: none; border: 2px solid var(--blind); }
.dot.majority { border-radius: 0; background: var(--majority); }
svg text { fill: var(--quiet); font: 12px system-ui, sans-serif; }
.strip text { font-size: 9px; }
.grid path, path.grid { stroke: var(--line); fill: none; }
.whisker { stroke: currentColor; stroke-width: 2; opacity: .45; }
g { fill: currentColor; }
g.model, .first { color: var(--model); }
g.blind, .second { color: var(--blind); }
g.majority { color: var(--majority); }
.hollow { fill: var(--card); stroke: currentColor; stroke-width: 2; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.second .line { stroke-dasharray: 4 3; }
.stage { display: grid; grid-template-columns: 190px 1fr 1fr; gap: 1.2rem; padding: 1.1rem;
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
figcaption b { margin-right: auto; }
figcaption svg { width: 26px; height: 10px; margin-right: .35em; }
div.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr));
  gap: .9rem; }
.scene { display: flex; flex-direction: column; overflow: hidden; }
.top { display: flex; gap: .9rem; padding: .9rem; }
.top > div { min-width: 0; }
.top p { margin-bottom: .3rem; line-height: 1.4; }
.top small { display: block; line-height: 1.4; }
img { flex: none; width: 144px; height: 144px; object-fit: contain; image-rendering: pixelated; }
mark { background: var(--tint); color: var(--wrong); text-decoration: underline wavy 1px;
  text-underline-offset: 3px; }
.scene ul { list-style: none; margin: 0; padding: 0; flex: 1; }
.scene li { display: grid; grid-template-columns: 1.1em 1fr auto; gap: .5rem; align-items: baseline;
  padding: .22rem .9rem; border-top: 1px solid var(--line); font-size: 13.5px; line-height: 1.35; }
.scene li > b { text-align: right; max-width: 8.5rem; }
.scene li b small { display: block; }
.scene li.wrong { background: var(--tint); }
li.wrong > b { color: var(--wrong); }
.mark { font-style: normal; font-weight: 700; color: var(--right); }
.top .mark { margin-right: .35em; }
.mark.wrong { color: var(--wrong); }
.scene footer { border-top: 1px solid var(--line); padding: .4rem .9rem; }
.next { padding: 0; margin: 0 0 .6rem; list-style: none; }
pre { margin: .2rem 0 .9rem; padding: .6rem .9rem; border-radius: 8px; overflow-x: auto;
  background: light-dark(#1d2025, #000); color: #e9ebee; overflow-wrap: normal; }
code { font: 13px ui-monospace, monospace; }
@media (max-width: 860px) { .stage { grid-template-columns: 1fr; } }
@media (max-width: 640px) { .strip { display: none; } th, td { padding: .4rem .55rem; }
  div.grid { grid-template-columns: 1fr; } }
"""
