"""A comparison of two models as one HTML page, with the pictures of what they answered unlike."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from data.charts import linear_axis
from data.page import page
from eval.cards import STYLE as CARD_STYLE
from eval.cards import Said, card
from eval.charts import strip, strip_scale
from eval.compare import Both, Comparison, Row
from eval.compare_report import explain, gain, gain_interval, p_value, verdict
from eval.finished_run import NOTED, SHARED, FinishedRun, differences
from eval.intervals import Figure
from eval.items import Item
from eval.page_parts import STYLE, pairs, shown, tile
from eval.selection import in_turns, with_pictures

MAX_FLIPS = 24  # of each kind that are shown


def write_comparison(path: Path, comparison: Comparison, a: FinishedRun, b: FinishedRun) -> None:
    """Write the page; pictures of the items that it shows are read once more."""
    flips = [_chosen(comparison.gained), _chosen(comparison.lost)]
    ids = [each.item.id for chosen in flips for each in chosen]
    items = with_pictures(a.benchmark, a.data, ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(comparison_page(comparison, a, b, items), encoding="utf-8")


def comparison_page(
    comparison: Comparison, a: FinishedRun, b: FinishedRun, items: Mapping[str, Item]
) -> str:
    """The page as text; equal arguments give equal pages.

    Args:
        items: those that are shown, by their ids, with pictures that can be read.
    """
    sections = (
        _head(comparison, a, b),
        _table(comparison),
        _flips("B is right where A is not", comparison.gained, items),
        _flips("A is right where B is not", comparison.lost, items),
        _receipts(a, b),
    )
    return page(f"{a.benchmark.title}: two models", "\n".join(sections), _STYLE)


def _head(comparison: Comparison, a: FinishedRun, b: FinishedRun) -> str:
    row = comparison.headline
    plain = row.figure in comparison.plain
    unit = "" if plain else " %"
    gained, lost = len(comparison.gained), len(comparison.lost)
    tiles = (
        tile("blind", "A", f"{shown(row.a, plain)}{unit}", escape(a.name)),
        tile("model", "B", f"{shown(row.b, plain)}{unit}", escape(b.name)),
        tile(
            "",
            "B less A",
            gain(comparison, row),
            f"95 %: {gain_interval(comparison, row)}<br>p {_p(row.p_value)}",
        ),
        tile("", "answers", f"+{gained:,} &minus;{lost:,}", "B better, B worse"),
    )
    return (
        f"<header><p class=eyebrow>vlm eval compare &middot; {escape(a.benchmark.title)}</p>"
        f"<h1>{escape(verdict(comparison))}</h1><p class=lead>Two models on the same "
        f"{row.num_items:,} items.</p><div class=tiles>{''.join(tiles)}</div></header>"
    )


def _table(comparison: Comparison) -> str:
    rows = [*comparison.types, *comparison.figures]
    bounds = [
        abs(value)
        for row in rows
        for value in (row.difference.value, row.difference.low, row.difference.high)
        if row.figure == comparison.headline.figure and isfinite(value)
    ]
    reach = linear_axis(max(bounds)).ticks[-1]
    ends = -reach, reach
    factor = 1 if comparison.headline.figure in comparison.plain else 100
    body = "".join(_line(comparison, row, ends) for row in rows)
    return (
        "<section><h2>By how much they differ</h2><div class=scroll><table><thead><tr>"
        "<th scope=col>items</th><th scope=col>n</th><th scope=col>A</th><th scope=col>B</th>"
        f"<th scope=col class=strip>{strip_scale(ends, factor)}</th>"
        "<th scope=col>B less A</th><th scope=col>p</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div><p class=quiet>{escape(explain(comparison))}</p>"
        "</section>"
    )


def _line(comparison: Comparison, row: Row, ends: tuple[float, float]) -> str:
    plain = row.figure in comparison.plain
    drawn = ""
    if row.figure == comparison.headline.figure:
        figure = Figure(
            value=row.difference.value, low=row.difference.low, high=row.difference.high
        )
        drawn = strip({"model": figure}, ends)
    name = row.figure if row.kind is None else row.kind
    return (
        f"<tr{' class=all' if row is comparison.headline else ''}><th scope=row>{escape(name)}</th>"
        f"<td>{row.num_items:,}</td><td>{shown(row.a, plain)}</td><td>{shown(row.b, plain)}</td>"
        f"<td class=strip>{drawn}</td><td>{gain(comparison, row).removesuffix(' points')}"
        f"<small>{gain_interval(comparison, row)}</small></td><td>{_p(row.p_value)}</td></tr>"
    )


def _flips(title: str, flips: Sequence[Both], items: Mapping[str, Item]) -> str:
    chosen = _chosen(flips)
    cards = "".join(
        card(
            items[each.item.id],
            [Said("A", each.a, each.score_a), Said("B", each.b, each.score_b)],
        )
        for each in chosen
    )
    note = f"{len(chosen)} of {len(flips):,}, each type in turn, each picture once."
    return (
        f"<section><h2>{title}</h2><p class=quiet>{note if flips else 'None.'}</p>"
        f"<div class=cards>{cards}</div></section>"
    )


def _chosen(flips: Sequence[Both]) -> list[Both]:
    """Those that are shown: the largest differences first."""
    order = sorted(range(len(flips)), key=lambda i: -abs(flips[i].score_b - flips[i].score_a))
    places = in_turns([each.item for each in flips], order, MAX_FLIPS)
    return [flips[place] for place in places]


def _receipts(a: FinishedRun, b: FinishedRun) -> str:
    """What the two runs share, and where else they differ."""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(_text(old))}</td>"
        f"<td>{escape(_text(new))}</td></tr>"
        for name, (old, new) in differences(a, b, ("model", "predictions", *SHARED, *NOTED)).items()
    )
    same = {"benchmark": a.benchmark.name, "prompt": a.benchmark.prompt}
    if a.receipt["data"]["sha256"] == b.receipt["data"]["sha256"]:
        same["data"] = f"{a.data}, sha256 {a.receipt['data']['sha256']}"
    return (
        f"<section><h2>The receipts</h2><dl class=facts>{pairs(same)}</dl>"
        "<div class=scroll><table class=receipts><thead><tr><th scope=col>what differs</th>"
        f"<th scope=col>A</th><th scope=col>B</th></tr></thead><tbody>{rows}</tbody></table></div>"
        "</section>"
    )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _p(value: float) -> str:
    return escape(p_value(value))


_STYLE = (
    STYLE
    + CARD_STYLE
    + """
.tile.blind { border-top-color: var(--blind); }
.receipts td { white-space: normal; overflow-wrap: anywhere; text-align: left; font-size: 13px; }
.receipts th { text-align: left; }
"""
)
