"""The report of an evaluation as one HTML page that needs nothing else and runs nothing."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data.charts import linear_axis
from data.page import page
from eval.benchmark import BenchmarkConfig
from eval.cards import STYLE as CARD_STYLE
from eval.cards import Said, card
from eval.charts import SHARES, strip, strip_scale
from eval.intervals import Figure
from eval.items import Item
from eval.page_parts import STYLE, interval, pairs, shown, tile
from eval.report import Report, Side, explain
from eval.scoring import Scored
from eval.selection import Selection, with_pictures

NOTES: dict[Side, str] = {
    "model": "sees the pictures",
    "blind": "the same model, pictures withheld",
    "majority": "the usual answer of each type",
}


def write_page(
    path: Path,
    report: Report,
    sides: Mapping[Side, Scored],
    benchmark: BenchmarkConfig,
    data: Path,
) -> None:
    """Write the page; pictures of the items that it shows are read once more.

    Args:
        data: the folder of the benchmark's files.
    """
    scored = sides["model"]
    selection = Selection.of(scored)
    items = with_pictures(benchmark, data, [scored.items[index].id for index in selection.all])
    path.write_text(report_page(report, sides, selection, items), encoding="utf-8")


def report_page(
    report: Report,
    sides: Mapping[Side, Scored],
    selection: Selection,
    items: Mapping[str, Item],
) -> str:
    """The page as text; equal arguments give equal pages.

    Args:
        selection: which items are shown.
        items: those by their ids, with pictures that can be read.
    """

    def cards(title: str, note: str, indices: Sequence[int]) -> str:
        shown_cards = "".join(card(items[_id(sides, i)], _said(sides, i)) for i in indices)
        if not shown_cards:
            return ""
        return (
            f"<section><h2>{title}</h2><p class=quiet>{note}</p>"
            f"<div class=cards>{shown_cards}</div></section>"
        )

    num_wrong = int((sides["model"].headline.item_scores < 1).sum())
    sections = (
        _head(report),
        _table(report),
        cards(
            "Wrong answers",
            f"{len(selection.wrong)} of {num_wrong:,} that are not wholly right: the worst of each "
            "type in turn, each picture once.",
            selection.wrong,
        ),
        cards("Right answers", "The best of each type in turn.", selection.right),
        cards("A sample", "Drawn from all items, whatever was answered.", selection.drawn),
        _receipt(report),
    )
    return page(f"{report.title}: {report.run.model.folder}", "\n".join(sections), _STYLE)


def _head(report: Report) -> str:
    run, plain = report.run, report.headline in report.plain
    unit = "" if plain else " %"
    figures = {side: report.overall.headline(side) for side in report.sides}
    tiles = "".join(
        tile(
            side,
            "the model" if side == "model" else side,
            f"{shown(figure.value, plain)}{unit}",
            f"95 %: {interval(figure, plain)}<br>{NOTES[side]}",
        )
        for side, figure in figures.items()
    )
    asked = f"{run.data.num_items:,} items"
    if run.data.limit == run.data.num_items:
        asked = f"the first {asked}"
    if run.data.num_published not in (None, run.data.num_items):
        asked += f" of {run.data.num_published:,} published"
    return (
        f"<header><p class=eyebrow>vlm eval &middot; {escape(report.title)}</p>"
        f"<h1>{escape(report.headline)} {shown(figures['model'].value, plain)}{unit}</h1>"
        f"<p class=lead>{escape(run.model.folder)} on {asked}.</p>"
        f"<div class=tiles>{tiles}</div></header>"
    )


def _table(report: Report) -> str:
    """The headline of each type of items, with its baselines."""
    plain = report.headline in report.plain
    ends, factor = _scale(report)
    rows = []
    for name, row in report.rows:
        figures = {str(side): row.headline(side) for side in report.sides}
        rows.append(
            f"<tr{' class=all' if row is report.overall else ''}>"
            f"<th scope=row>{escape(name)}</th><td>{row.num_items:,}</td>"
            f"<td class=strip>{strip(figures, ends)}</td>"
            f"{''.join(_cell(figure, plain) for figure in figures.values())}</tr>"
        )
    head = (
        "<th scope=col>items</th><th scope=col>n</th>"
        f"<th scope=col class=strip>{strip_scale(ends, factor)}</th>{_side_names(report)}"
    )
    return (
        f"<section><h2>{escape(report.headline)}{' by type' if report.types else ''}</h2>"
        f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class=quiet>{escape(explain(report))}</p>{_further(report)}</section>"
    )


def _further(report: Report) -> str:
    """The other figures of all items."""
    figures = {side: report.overall.figures[side] for side in report.sides}
    names = [name for name in figures["model"] if name != report.headline]
    if not names:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}{'' if name in report.plain else ' %'}</th>"
        f"{''.join(_cell(of[name], name in report.plain) for of in figures.values())}</tr>"
        for name in names
    )
    return (
        "<h3>Other figures</h3><div class=scroll><table><thead><tr><th scope=col>of all items</th>"
        f"{_side_names(report)}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _side_names(report: Report) -> str:
    return "".join(f"<th scope=col><i class='dot {side}'></i>{side}</th>" for side in report.sides)


def _cell(figure: Figure, plain: bool) -> str:
    return f"<td>{shown(figure.value, plain)}<small>{interval(figure, plain)}</small></td>"


def _scale(report: Report) -> tuple[tuple[float, float], float]:
    """The ends of the interval bars, and what the numbers there are multiplied with."""
    if report.headline not in report.plain:
        return SHARES, 100
    figures = [row.headline(side) for _, row in report.rows for side in report.sides]
    values = [v for figure in figures for v in (figure.value, figure.high) if v is not None]
    return (0.0, linear_axis(max(values, default=1.0)).ticks[-1]), 1


def _said(sides: Mapping[Side, Scored], index: int) -> list[Said]:
    """What each side but the constant one answered to an item."""
    return [
        Said(side, scored.answers[index], float(scored.headline.item_scores[index]))
        for side, scored in sides.items()
        if side != "majority"
    ]


def _receipt(report: Report) -> str:
    run = report.run
    hidden = ("name", "files", "optional_files", "metrics", "num_items")
    settings = {
        name.replace("_", " "): _words(value)
        for name, value in run.benchmark.items()
        if name not in hidden and value not in ({}, [], "", None, False, "none")
    }
    groups = {
        "model": {
            "folder": run.model.folder,
            "trained by": f"stage {run.model.stage}, seed {run.model.seed}, "
            f"commit {run.model.commit or 'not known'}",
            **{f"sha256 of {name}": sha for name, sha in run.model.weights_sha256.items()},
        },
        "data": {
            "folder": run.data.folder,
            "sha256 of items and pictures": run.data.sha256,
            "items": f"{run.data.num_items:,}",
        },
        "benchmark": {
            "name": run.benchmark["name"],
            "metrics": ", ".join(run.benchmark["metrics"]),
            **settings,
        },
        "pictures": {name.replace("_", " "): _words(v) for name, v in run.preprocessing.items()},
        "measured": {
            "device": f"{run.device}, {run.dtype}, batches of {run.batch_size}",
            "time": f"{run.seconds:,.1f} s",
            "commit": run.commit or "not known",
            "versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
        },
    }
    command = ""
    if run.command is not None:
        command = f"<h3>command</h3><pre><code>{escape(run.command)}</code></pre>"
    facts = "".join(
        f"<div class=group><h3>{name}</h3><dl>{pairs(group)}</dl></div>"
        for name, group in groups.items()
        if group
    )
    return (
        f"<section class=receipt><h2>The receipt</h2><div class=groups>{facts}</div>"
        f"<h3>prompt of the first item</h3><pre><code>{escape(run.prompt)}</code></pre>"
        f"{command}</section>"
    )


def _words(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name.replace('_', ' ')}: {_words(each)}" for name, each in value.items()
        )
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def _id(sides: Mapping[Side, Scored], index: int) -> str:
    return sides["model"].items[index].id


_STYLE = (
    STYLE
    + CARD_STYLE
    + """
section > .quiet { margin-bottom: .9rem; }
.groups { columns: 340px; column-gap: 1rem; }
.group { break-inside: avoid; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .7rem .9rem; margin-bottom: 1rem; }
.group div { display: grid; grid-template-columns: 8rem 1fr; gap: .6rem; padding: .15rem 0;
  font-size: 13px; border-top: 1px solid var(--line); }
.group dt { padding-top: .1rem; overflow-wrap: anywhere; }
section > h3 { margin: 1.4rem 0 .5rem; }
.receipt > h3 { margin: 1rem 0 .4rem; }
.receipt pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
)
