"""A comparison in words and as a table for a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.compare import Both, Comparison, Row
from eval.finished_run import NOTED, SHARED, FinishedRun, differences
from eval.paired import NUM_SWAPS, Test

SURE = 0.05  # p values below count as more than chance
MAX_FLIPS = 5  # of each kind that are printed
MAX_WORDS = 60  # characters of a text in a table
TESTS: dict[Test, str] = {
    "mcnemar": "McNemar's exact test",
    "sign flips": "exact test over the signs of pictures",
    "swaps": f"{NUM_SWAPS:,} random swaps",
}


def print_comparison(
    console: Console, comparison: Comparison, a: FinishedRun, b: FinishedRun
) -> None:
    """Print what was compared, the table, and answers of which one alone is right."""
    for name, run in (("A", a), ("B", b)):
        console.print(
            f"{name}: {run.name} ({run.path})"
            if run.name != str(run.path)
            else f"{name}: {run.name}",
            markup=False,
        )
    for name, (old, new) in differences(a, b, (*SHARED, *NOTED)).items():
        console.print(f"  differs: {name}: {old} and {new}", markup=False)
    console.print(terminal_table(comparison))
    console.print(f"{verdict(comparison)}.", style="bold", markup=False)
    console.print(explain(comparison), markup=False)
    for title, flips in (
        ("B is right where A is not", comparison.gained),
        ("A is right where B is not", comparison.lost),
    ):
        console.print(f"\n{title}: {len(flips):,}", markup=False)
        if flips:
            console.print(flips_table(flips))


def verdict(comparison: Comparison) -> str:
    """Which model is better, in a sentence."""
    row = comparison.headline
    if row.p_value >= SURE:
        return f"By {row.figure}, A and B cannot be told apart"
    better = (row.difference.value > 0) != (row.figure in comparison.lower_is_better)
    return f"{'B' if better else 'A'} is better: {row.figure} {gain(comparison, row)}"


def gain(comparison: Comparison, row: Row) -> str:
    """The difference with its sign; of shares in points of a hundred."""
    if row.figure in comparison.plain:
        return f"{row.difference.value:+.4g}"
    return f"{100 * row.difference.value:+.1f} points"


def gain_interval(comparison: Comparison, row: Row, between: str = " to ") -> str:
    """The bounds of the difference."""
    bounds = row.difference.low, row.difference.high
    if row.figure in comparison.plain:
        return between.join(f"{bound:+.4g}" for bound in bounds)
    return between.join(f"{100 * bound:+.1f}" for bound in bounds)


def p_value(value: float) -> str:
    """A p value, small ones as such."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def explain(comparison: Comparison) -> str:
    """How the figures of a comparison come about, in words."""
    parts = [
        "B less A, with 95 % intervals from resampling pictures (items, where there are none), the "
        f"same for both. p: {TESTS[comparison.headline.difference.test]}"
        f"{'; of types, adjusted for their number (Holm)' if comparison.types else ''}."
    ]
    for name, count in (("A", comparison.only_a), ("B", comparison.only_b)):
        if count:
            parts.append(f"{count:,} items that only {name} answered are left out.")
    return " ".join(parts)


def terminal_table(comparison: Comparison) -> Table:
    """The headline of each type and all figures of all items."""
    table = Table("", "n", "A", "B", "B - A", "95 %", "p", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in [*comparison.types, *comparison.figures]:
        value = "{:.4g}" if row.figure in comparison.plain else "{:.1f}"
        factor = 1 if row.figure in comparison.plain else 100
        table.add_row(
            escape(row.figure if row.kind is None else row.kind),
            f"{row.num_items:,}",
            value.format(factor * row.a),
            value.format(factor * row.b),
            gain(comparison, row).removesuffix(" points"),
            gain_interval(comparison, row),
            p_value(row.p_value),
            style="bold" if row is comparison.headline else None,
        )
    return table


def flips_table(flips: Sequence[Both]) -> Table:
    """Items and what both models answered, the first few."""
    table = Table("item", "question", "A", "B", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for each in flips[:MAX_FLIPS]:
        texts = (each.item.id, each.item.question, each.a.value, each.b.value)
        table.add_row(*(escape(_shortened(text)) for text in texts))
    return table


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_WORDS else f"{line[: MAX_WORDS - 3]}..."
