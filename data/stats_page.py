"""The figures of folders of shards as one HTML page: facts, a table, a histogram of each."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from data.charts import histogram
from data.page import page
from data.stats import FolderStats, table_rows

MAX_NAMES = 12  # of types and sources that are listed


def stats_page(folders: Sequence[FolderStats]) -> str:
    """The figures of each folder, one section below another."""
    title = ", ".join(stats.folder.name for stats in folders)
    return page(title, "\n".join(map(_section, folders)), _STYLE)


def _section(stats: FolderStats) -> str:
    manifest = stats.manifest
    num_bytes = sum(entry.num_bytes for entry in manifest.shards)
    facts = [
        f"samples: {manifest.num_samples:,}",
        f"pictures: {manifest.num_images:,}",
        f"answers: {manifest.num_turns:,}",
        f"shards: {len(manifest.shards):,} ({num_bytes / 1e6:,.1f} MB)",
        f"rejects: {manifest.num_rejects:,}",
        f"data: {manifest.sha256[:12]}",
    ]
    if stats.bad_pictures:
        facts.append(f"pictures that cannot be read: {stats.bad_pictures:,}")
    items = "".join(f"<li>{fact}</li>" for fact in facts)
    charts = "".join(
        histogram(measure.name, measure.unit, measure.counts)
        for measure in stats.measures
        if len(measure.counts) > 1  # one value is in the table
    )
    lists = "".join(
        _list(title, counts)
        for title, counts in [
            ("picture formats", stats.formats),
            ("types of answers", stats.types),
            ("sources", stats.sources),
        ]
        if counts
    )
    return (
        f"<section><h1>{escape(stats.folder.name)}</h1><ul class=facts>{items}</ul>"
        f"<div class=scroll>{_table(stats)}</div><div class=charts>{charts}</div>"
        f"<div class=lists>{lists}</div></section>"
    )


def _table(stats: FolderStats) -> str:
    head, *rows = table_rows(stats)
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _list(title: str, counts: Counter[str]) -> str:
    total = counts.total()
    rows = [
        f"<tr><th>{escape(name)}</th><td>{count:,}</td><td>{100 * count / total:.1f} %</td></tr>"
        for name, count in counts.most_common(MAX_NAMES)
    ]
    if len(counts) > MAX_NAMES:
        rows.append(f"<tr><th>and {len(counts) - MAX_NAMES} more</th><td></td><td></td></tr>")
    return f"<table><caption>{title}</caption><tbody>{''.join(rows)}</tbody></table>"


_STYLE = """
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll table { width: 100%; }
th, td { padding: .4rem .9rem; text-align: right; font-weight: 400; white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
thead th { color: var(--quiet); font-size: 12.5px; }
tbody tr + tr, thead + tbody tr { border-top: 1px solid var(--line); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem;
  margin: 1rem 0; }
figure { margin: 0; padding: .7rem .8rem .4rem; border: 1px solid var(--line);
  border-radius: 10px; background: var(--card); }
figcaption { margin-bottom: .3rem; }
svg { display: block; width: 100%; }
svg text { fill: var(--quiet); font: 12px system-ui, sans-serif; }
path.grid { stroke: var(--line); fill: none; }
.bar { fill: var(--bar); }
.lists { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.lists table { border: 1px solid var(--line); background: var(--card); font-size: 13px; }
caption { text-align: left; padding-bottom: .3rem; color: var(--quiet); }
"""
