"""Figures of predictions that were made elsewhere, with the receipt of how they came."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.benchmark import BenchmarkConfig, describe
from eval.elsewhere import Given
from eval.intervals import Figure
from eval.items import MISSING, Item, items_sha256
from eval.matching import Matched, match, some
from eval.scoring import Scored, read_answers, score
from vlm.errors import UserError
from vlm.provenance import commit, library_versions

# A table of more types than that hides the figures above it.
MOST_TYPES_SHOWN = 40


class Row(BaseModel):
    """The figures of some items, by name."""

    model_config = ConfigDict(frozen=True)

    num_items: int
    figures: dict[str, Figure]


class ScoreReport(BaseModel):
    """What the predictions are worth.

    headline: the name of the first figure. plain: figures that are no shares.
    types: a row for each type of items, where there are several.
    matched_by: how items were found. missing: the ids of items that count as wrong without one.
    settings: the benchmark's, of which the rule and the metrics matter here.
    predictions_sha256: of the file; of a folder's files one after the other.
    """

    model_config = ConfigDict(frozen=True)

    benchmark: str
    title: str
    headline: str
    plain: tuple[str, ...]
    overall: Row
    types: dict[str, Row]
    matched_by: str
    missing: tuple[str, ...]
    settings: dict[str, Any]
    data: str
    data_sha256: str
    predictions: str
    predictions_sha256: str
    commit: str | None
    versions: dict[str, str]

    def shown(self, name: str, figure: Figure) -> tuple[str, str]:
        """A figure and its interval as text: shares in percent."""
        if figure.value is None:
            return "-", "-"
        values = (figure.value, figure.low, figure.high)
        value, low, high = (
            "-" if v is None else f"{v:.2f}" if name in self.plain else f"{100 * v:.2f}"
            for v in values
        )
        return value, f"{low} - {high}"


def score_given(
    benchmark: BenchmarkConfig,
    items: Sequence[Item],
    given: Sequence[Given],
    allow_missing: bool = False,
) -> tuple[Scored, Matched]:
    """Match predictions to items, read them by the benchmark's rule, measure them.

    Args:
        allow_missing: items without a prediction count as wrong.
    Raises:
        UserError: predictions fit no items, or an item has none.
    """
    matched = match(items, given)
    missing = matched.missing(items)
    if missing and not allow_missing:
        raise UserError(
            f"{len(missing)} of {len(items)} items have no prediction: {some(missing)}; "
            "--allow-missing counts them as wrong"
        )
    answered = [item for item in items if item.id in matched.found]
    predictions = [matched.found[item.id].prediction(item.id) for item in answered]
    read = zip(answered, read_answers(benchmark, answered, predictions), strict=True)
    by_id = {item.id: answer for item, answer in read}
    return score(benchmark, items, [by_id.get(item.id, MISSING) for item in items]), matched


def build_score_report(
    benchmark: BenchmarkConfig, data: Path, predictions: Path, scored: Scored, matched: Matched
) -> ScoreReport:
    """Gather the figures of all items and of each type, and where they come from."""
    types = scored.types if len(scored.types) > 1 else []
    overall = Row(num_items=len(scored.items), figures=scored.figures())
    return ScoreReport(
        benchmark=benchmark.name,
        title=benchmark.title,
        headline=next(iter(overall.figures)),
        plain=tuple(sorted(name for m in scored.measured.values() for name in m.plain)),
        overall=overall,
        types={
            kind: Row(num_items=scored.num_items(kind), figures=scored.figures(kind))
            for kind in types
        },
        matched_by=matched.how,
        missing=tuple(matched.missing(scored.items)),
        settings=dict(describe(benchmark)),
        data=str(data),
        data_sha256=items_sha256(scored.items),
        predictions=str(predictions),
        predictions_sha256=_sha256(predictions),
        commit=commit(),
        versions=library_versions(),
    )


def tables(report: ScoreReport) -> list[Table]:
    """All figures as a table for a terminal, and the headline of each type as another."""
    figures = _table(report.title, "figure")
    for name, figure in report.overall.figures.items():
        figures.add_row(name, *report.shown(name, figure))
    if not 0 < len(report.types) <= MOST_TYPES_SHOWN:
        return [figures]
    types = _table(f"{report.headline} by type", "type", "n")
    for kind, row in report.types.items():
        cells = report.shown(report.headline, row.figures[report.headline])
        types.add_row(kind, str(row.num_items), *cells)
    return [figures, types]


def write_score_report(path: Path, report: ScoreReport) -> None:
    """Write the report as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"no figures can be written to {path}: {error}") from error


def _table(title: str, *names: str) -> Table:
    table = Table(*names, "value", "95 %", title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
