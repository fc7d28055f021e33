"""The report of a robustness sweep as one HTML page that needs nothing else and runs nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from data.charts import CHART_PX, PLOT_PX, Axis, linear_axis, svg, value_grid, value_y
from data.page import page
from data.thumbnails import picture_figure
from eval.attacks import canvas_file
from eval.benchmark import BenchmarkConfig
from eval.cards import STYLE as CARD_STYLE
from eval.cards import Said, card
from eval.conditions import SEVERITIES, Corruption
from eval.corruptions import corrupt
from eval.items import Item, Picture
from eval.page_parts import STYLE, interval, shown, tile
from eval.predictions import read_predictions
from eval.report import receipt
from eval.robustness import (
    RobustnessReport,
    Row,
    Sweep,
    attack_cells,
    change,
    corruption_cells,
    explain,
)
from eval.run import attacked_folder, predictions_path
from eval.selection import in_turns, with_pictures
from vlm.chat.processor import Processor
from vlm.images import read_image

MAX_EXAMPLES = 6  # of each attack


def write_page(
    path: Path, sweep: Sweep, benchmark: BenchmarkConfig, data: Path, processor: Processor
) -> None:
    """Write the page; pictures of the items that it shows are read once more.

    Args:
        data: the folder of the benchmark's files.
        processor: the model's, whose canvases the attacks changed.
    """
    report = sweep.report
    sample = next((item for item in benchmark.items(data) if item.images), None)
    kinds = [] if sample is None else [_kind(report, kind, sample) for kind in report.corruptions]
    sections = [_head(report), _table("Corruptions", corruption_cells(report))]
    sections += [f"<div class=kinds>{''.join(kinds)}</div>" if kinds else ""]
    sections += [_table("Attacks", attack_cells(report))]
    sections += [_examples(sweep, row, benchmark, data, processor) for row in report.attacks]
    sections += [f"<p class=quiet>{escape(explain(report))}</p>", _receipt(report)]
    title = f"Robustness on {report.clean.title}: {report.clean.run.model.folder}"
    path.write_text(page(title, "\n".join(sections), _STYLE), encoding="utf-8")


def _head(report: RobustnessReport) -> str:
    clean, plain = report.clean, report.plain
    unit = "" if plain else " %"
    figure = clean.overall.headline()
    tiles = [
        tile("model", "clean", f"{shown(figure.value, plain)}{unit}", interval(figure, plain)),
    ]
    if "blind" in clean.sides:
        blind = clean.overall.headline("blind")
        note = f"pictures withheld; {interval(blind, plain)}"
        tiles.append(tile("blind", "blind", f"{shown(blind.value, plain)}{unit}", note))
    if report.mean_corruption is not None:
        value = f"{shown(report.mean_corruption, plain)}{unit}"
        tiles.append(tile("", "mean under corruption", value, change(report.mean_relative)))
    worst = [row for row in report.attacks if row.figure.value is not None]
    if worst:
        row = min(worst, key=lambda row: row.figure.value or 0)
        value = f"{shown(row.figure.value, plain)}{unit}"
        tiles.append(tile("", f"lowest under attack: {row.label}", value, change(row.relative)))
    return (
        f"<header><p class=eyebrow>vlm eval &middot; robustness &middot; {escape(clean.title)}</p>"
        f"<h1>{escape(clean.run.model.folder)}</h1>"
        f"<p class=lead>{escape(report.headline)} of {clean.run.data.num_items:,} items, clean and "
        f"under {len(report.rows)} conditions.</p><div class=tiles>{''.join(tiles)}</div></header>"
    )


def _table(title: str, cells: Sequence[Sequence[str]]) -> str:
    head, *lines = cells
    if not lines:
        return ""
    names = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    rows = "".join(
        f"<tr><th scope=row>{escape(line[0])}</th>"
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in line[1:])}</tr>"
        for line in lines
    )
    return (
        f"<section><h2>{title}</h2><div class=scroll><table><thead><tr>{names}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _kind(report: RobustnessReport, kind: str, sample: Item) -> str:
    """A corruption's curve, and what its severities look like."""
    rows = report.corruptions[kind]
    pictures = "".join(
        picture_figure(_corrupted(sample, rows[severity].condition)) for severity in sorted(rows)
    )
    return f"<article>{_curve(report, kind, rows)}<div class=pictures>{pictures}</div></article>"


def _corrupted(sample: Item, condition: object) -> bytes:
    assert isinstance(condition, Corruption)
    return corrupt(sample.images[0].read(), condition, sample.images[0].name)


def _curve(report: RobustnessReport, kind: str, rows: Mapping[int, Row]) -> str:
    """The figure over severities, 0 being the clean pictures, with intervals."""
    figures = {0: report.clean.overall.headline(), **{s: row.figure for s, row in rows.items()}}
    factor = 1 if report.plain else 100
    values = [value for f in figures.values() for value in (f.value, f.high) if value is not None]
    axis = (
        linear_axis(max(values, default=1)) if report.plain else Axis([0, 25, 50, 75, 100], False)
    )
    left, _, right, bottom = PLOT_PX

    def x(severity: int) -> float:
        return left + severity / SEVERITIES[-1] * (right - left)

    points, bars = [], []
    for severity in sorted(figures):
        figure = figures[severity]
        if figure.value is None:
            continue
        y, low, high = (
            value_y(factor * (figure.value if value is None else value), axis)
            for value in (figure.value, figure.low, figure.high)
        )
        points.append(f"{x(severity):.1f} {y:.1f}")
        bars.append(
            f'<path class=whisker d="M{x(severity):.1f} {low:.1f}V{high:.1f}"/>'
            f'<circle cx="{x(severity):.1f}" cy="{y:.1f}" r="3.5"><title>severity {severity}: '
            f"{report.shown(figure.value)}</title></circle>"
        )
    labels = "".join(
        f'<text x="{x(severity):.1f}" y="{bottom + 18}" text-anchor="middle">'
        f"{severity or 'clean'}</text>"
        for severity in (0, *SEVERITIES)
    )
    line = f'<path class=line d="M{"L".join(points)}"/>' if points else ""
    return (
        f"<figure class=curve><figcaption><b>{escape(kind.replace('_', ' '))}</b></figcaption>"
        f"{svg(CHART_PX, f'{report.headline} over severities of {kind}')}{value_grid(axis)}{labels}"
        f"<g class=model>{line}{''.join(bars)}</g></svg></figure>"
    )


def _examples(
    sweep: Sweep, row: Row, benchmark: BenchmarkConfig, data: Path, processor: Processor
) -> str:
    """Items that an attack turned from right to wrong: canvas, attacked canvas, the difference."""
    path = sweep.folder / Path(row.report).name
    kept = attacked_folder(path)
    clean, attacked = sweep.clean.scored, sweep.changed[row.label].scored
    files = {
        prediction.id: kept / f"{prediction.images[0]}.png"
        for prediction in read_predictions(predictions_path(path))[1]
        if prediction.images
    }
    fell = clean.headline.item_scores > attacked.headline.item_scores
    places = [int(place) for place in np.flatnonzero(fell)]
    kept_places = [place for place in places if files[clean.items[place].id].is_file()]
    chosen = in_turns(clean.items, kept_places, MAX_EXAMPLES)
    items = with_pictures(benchmark, data, [clean.items[place].id for place in chosen])
    cards = []
    for place in chosen:
        item = items[clean.items[place].id]
        pictures = _compared(item, files[item.id].read_bytes(), processor)
        said = [
            Said(who, scored.answers[place], float(scored.headline.item_scores[place]))
            for who, scored in (("clean", clean), ("attacked", attacked))
        ]
        cards.append(card(replace(item, images=tuple(pictures)), said))
    if not cards:
        return ""
    return (
        f"<section><h3>{escape(row.label)}</h3><p class=quiet>{len(places):,} items answered "
        "worse; of those that were kept: the canvas as it was, attacked, and the difference, "
        "enlarged to the full range.</p>"
        f"<div class=cards>{''.join(cards)}</div></section>"
    )


def _compared(item: Item, content: bytes, processor: Processor) -> Iterator[Picture]:
    before = canvas_file(processor.tile_file(item.images[0].read()))
    old, new = (np.asarray(read_image(file), dtype=np.float64) for file in (before, content))
    change = new - old
    scaled = 127.5 + 127.5 * change / max(np.abs(change).max(), 1)
    difference = BytesIO()
    Image.fromarray(scaled.round().astype(np.uint8)).save(difference, "PNG")
    files = {"canvas": before, "attacked": content, "difference": difference.getvalue()}
    for name, file in files.items():
        yield Picture(f"{sha256(file).hexdigest()} {name}", lambda file=file: file)  # type: ignore[misc]


def _receipt(report: RobustnessReport) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in receipt(report.clean).items()
    )
    return f"<section><h2>The receipt</h2><dl class=receipt>{facts}</dl></section>"


_STYLE = (
    STYLE
    + CARD_STYLE
    + """
.kinds { columns: 340px; column-gap: 1rem; }
.curve { margin: 0; padding: .5rem .6rem 0; }
.curve svg { width: 100%; display: block; }
.line { stroke: currentColor; stroke-width: 2; fill: none; }
.kinds .pictures { grid-template-columns: repeat(5, 1fr); }
.kinds .pictures figcaption { display: none; }
.kinds img.pixels { width: 100%; padding: 0; }
section > .quiet { margin-bottom: .9rem; }
section > h3 { margin-top: 2rem; }
.receipt div { display: grid; grid-template-columns: 9rem 1fr; gap: .6rem; padding: .3rem 0;
  font-size: 13px; border-top: 1px solid var(--line); }
"""
)
