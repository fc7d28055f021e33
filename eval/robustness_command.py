"""A benchmark under corruptions and attacks, for the command `vlm eval`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eval.benchmark import BenchmarkConfig
from eval.conditions import Condition
from eval.ranks import rank
from eval.robustness import measure_robustness, summary, terminal_tables
from eval.robustness_page import write_page
from eval.run import EvalConfig
from vlm.api import Model


def sweep(
    model: Model,
    benchmark: BenchmarkConfig,
    data: Path,
    out: Path,
    conditions: Sequence[Condition],
    config: EvalConfig,
    majority_from: Path | None,
    command: str,
) -> None:
    """Measure as it is and under each condition, write the reports and print the tables."""
    found = measure_robustness(
        model, benchmark, data, out, conditions, config, majority_from, command
    )
    if rank() > 0:
        return
    write_page(out.with_suffix(".html"), found, benchmark, data, model.processor)
    for name, text in summary(found.report).items():
        print(f"{name}: {text}")
    for table in terminal_tables(found.report):
        Console().print(table)
    print(f"report: {out}, {out.with_suffix('.md').name}, {out.stem}.html")
    print(f"each condition's report and predictions: {found.folder}")
