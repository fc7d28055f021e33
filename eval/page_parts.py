"""Pieces that HTML pages about figures share: tiles, facts, marks, a table with interval bars."""

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.intervals import Figure

UNKNOWN = "&ndash;"


def tile(kind: str, label: str, value: str, note: str) -> str:
    """A large figure; `kind` is its class, `value` and `note` are HTML."""
    return (
        f'<div class="tile {kind}"><span>{escape(label)}</span><b>{value}</b>'
        f"<small>{note}</small></div>"
    )


def pairs(facts: Mapping[str, Any]) -> str:
    """Names and values, plain text, as the content of a list."""
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )


def shown(value: float | None, plain: bool = False) -> str:
    """A figure as HTML: a share in percent, another as it is."""
    if value is None:
        return UNKNOWN
    return f"{value:.3f}" if plain else f"{100 * value:.1f}"


def interval(figure: Figure, plain: bool = False) -> str:
    """The bounds of a figure."""
    return f"{shown(figure.low, plain)}&ndash;{shown(figure.high, plain)}"


def mark(score: float) -> str:
    """A tick, a cross, or how right an answer is, in percent."""
    if 0 < score < 1:
        return f"<i class='mark partly'>{100 * score:.0f} %</i>"
    name, sign = ("right", "&#10003;") if score else ("wrong", "&#10007;")
    return f'<i class="mark {name}" role="img" aria-label="{name}">{sign}</i>'


# CSS on a page of `data.page`.
STYLE = """
body { max-width: 1160px; padding: 2.5rem 1.2rem 4rem; font-size: 15px; line-height: 1.5;
  overflow-wrap: anywhere; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.7rem); line-height: 1.15; letter-spacing: -.02em;
  margin: .2rem 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 3rem 0 1rem; }
h3 { font-size: 1.1rem; margin: 0; }
p { margin: 0; }
small, .quiet { color: var(--quiet); font-size: 12.5px; font-weight: 400; }
section > .quiet { margin-bottom: .9rem; }
section > h3 { margin: 1.4rem 0 .5rem; }
.eyebrow { color: var(--quiet); font-size: 12px; font-weight: 600; letter-spacing: .07em;
  text-transform: uppercase; }
.lead { font-size: 1.1rem; color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: .8rem;
  margin: 1.6rem 0; }
.tile, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: .8rem 1.1rem; border-top: 4px solid var(--majority); }
.tile.model { border-top-color: var(--model); }
.tile.blind { border-top-color: var(--blind); }
.tile b { display: block; font-size: 2rem; line-height: 1.25; letter-spacing: -.02em; }
.tile small { display: block; }
dt { color: var(--quiet); font-size: 12px; overflow-wrap: normal; }
dl, dd { margin: 0; }
.facts { gap: .6rem 2rem; margin-bottom: .8rem; color: inherit; }
.scroll { overflow-x: auto; margin-bottom: .7rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .45rem .9rem; text-align: right; font-weight: 400; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--quiet); font-size: 12.5px; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
tr.all > * { font-weight: 700; }
td small { display: block; font-size: 11.5px; line-height: 1.2; }
.strip { width: 38%; padding: 0 .5rem; }
.strip svg { display: block; width: 100%; }
.dot { display: inline-block; width: 9px; height: 9px; margin-right: .4em; border-radius: 50%;
  background: var(--model); }
.dot.blind { background: none; border: 2px solid var(--blind); }
.dot.majority { border-radius: 0; background: var(--majority); }
svg text { fill: var(--quiet); font: 12px system-ui, sans-serif; }
path.grid { stroke: var(--line); fill: none; }
.whisker { stroke: currentColor; stroke-width: 2; opacity: .45; }
g { fill: currentColor; }
g.model { color: var(--model); }
g.blind { color: var(--blind); }
g.majority { color: var(--majority); }
.hollow { fill: var(--card); stroke: currentColor; stroke-width: 2; }
.mark { font-style: normal; font-weight: 700; margin-right: .35em; color: var(--right); }
.mark.wrong, .mark.partly { color: var(--wrong); }
pre { margin: .2rem 0 .9rem; padding: .6rem .9rem; border-radius: 8px; overflow-x: auto;
  background: light-dark(#1d2025, #000); color: #e9ebee; overflow-wrap: normal; }
code { font: 13px ui-monospace, monospace; }
@media (max-width: 640px) { .strip { display: none; }
  th, td { padding: .4rem .3rem; font-size: 13px; } td small { font-size: 10px; } }
"""
