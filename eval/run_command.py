"""What `vlm eval` does: plan, load the model, measure each benchmark, print."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmark import BenchmarkConfig, find_benchmark
from eval.conditions import Condition
from eval.consent import Consent
from vlm.errors import UserError

if TYPE_CHECKING:
    from eval.run import EvalConfig, Evaluation
    from vlm.api import Model


@dataclass(frozen=True)
class Planned:
    """A benchmark, the folder of its files, and where its report goes."""

    benchmark: BenchmarkConfig
    data: Path
    report: Path


def plan(
    names: Sequence[str],
    overrides: Sequence[str],
    data: Path,
    model: Path,
    out: Path | None,
    majority_from: Path | None,
    conditions: Sequence[Condition],
) -> list[Planned]:
    """Find benchmarks, their data and the places of their reports, before a model is loaded.

    Raises:
        UserError: there is no such benchmark, its data is missing or wrong, options contradict each
            other, or no report can be written.
    """
    if len(names) > 1 and (out is not None or majority_from is not None):
        raise UserError("--out and --majority-from are of one benchmark; leave them out of several")
    planned = []
    for name in names:
        benchmark = find_benchmark(name, tuple(overrides))
        folder = data / benchmark.name if len(names) > 1 else data
        if next(benchmark.items(folder), None) is None:
            raise UserError(f"{folder} holds no item of {benchmark.name}")
        for condition in conditions:
            benchmark.under(condition)
        stem = folder.resolve().name if benchmark.name == "shards" else benchmark.name
        kind = ".robustness" if conditions else ""
        report = out or model / "eval" / f"{stem}{kind}.json"
        if report.suffix != ".json" or report.is_dir():
            raise UserError(f"--out is {report}, needed: a file that ends in .json")
        planned.append(Planned(benchmark, folder, report))
    return planned


def measure(
    folder: Path,
    planned: Sequence[Planned],
    conditions: Sequence[Condition],
    config: "EvalConfig",
    majority_from: Path | None,
    consent: Consent,
    device: str,
    dtype: str,
) -> None:
    """Load a model, measure it on each benchmark, write the reports and print them.

    Raises:
        UserError: the model's folder cannot be loaded or holds none that can be asked this, a
            report cannot be written, or see `eval.run.evaluate`.
    """
    from eval.ranks import own_device
    from eval.robustness_command import sweep
    from eval.run import evaluate
    from eval.zero_shot import ZeroShot, for_towers
    from eval.zero_shot_run import evaluate_zero_shot
    from vlm.api import load

    model: Model | ZeroShot
    if for_towers([each.benchmark for each in planned]):
        if majority_from is not None or conditions:
            raise UserError(
                "--majority-from, --corruption and --attack are for questions, which an encoder "
                "is not asked"
            )
        model = ZeroShot.load(folder, own_device(device), dtype, config.batch_size)
    else:
        model = load(folder, device=own_device(device), dtype=dtype)
    for each in planned:  # before the questions, not after an hour of them
        try:
            each.report.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"no report can be written to {each.report}: {error}") from error
    command = shlex.join(["vlm", *sys.argv[1:]])
    for each in planned:
        where = each.benchmark, each.data, each.report
        with consent.given(each.report, folder.resolve().name):
            if isinstance(model, ZeroShot):
                found = evaluate_zero_shot(model, *where, config, command)
            elif conditions:
                sweep(model, *where, conditions, config, majority_from, command)
                continue
            else:
                found = evaluate(model, *where, config, majority_from, command)
        _show(each, found, folder.resolve().name)


def _show(planned: Planned, found: "Evaluation", model: str) -> None:
    """Write the page and print the figures; the first of several processes does."""
    from rich.console import Console

    from eval.exports import write_export
    from eval.ranks import rank
    from eval.report import further_figures, terminal_table
    from eval.report_page import write_page
    from eval.run import predictions_path

    if rank() > 0:
        return
    path, report = planned.report, found.report
    write_page(path.with_suffix(".html"), report, found.sides, planned.benchmark, planned.data)
    Console().print(terminal_table(report))
    for name, text in further_figures(report).items():
        print(f"{name}: {text}")
    print(f"report: {path}, {path.with_suffix('.md').name}, {path.stem}.html")
    print(f"predictions: {predictions_path(path)}")
    scored = found.scored
    export = write_export(planned.benchmark, path, scored.items, scored.answers, model)
    if export is not None:
        print(f"for the benchmark's own tools: {export}")
