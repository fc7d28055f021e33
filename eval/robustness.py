"""A benchmark asked as it is, and again with its pictures damaged or attacked."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.benchmark import BenchmarkConfig
from eval.conditions import SEVERITIES, Attack, Condition, Corruption
from eval.intervals import Figure
from eval.predictions import read_predictions
from eval.ranks import rank
from eval.report import Report, markdown_line, receipt
from eval.run import EvalConfig, Evaluation, evaluate, predictions_path
from vlm.api import Model

CLEAN = "clean"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)


class Row(_Facts):
    """The headline figure under a condition.

    condition: a corruption or an attack.
    relative: the figure divided by the clean one; None where that is 0 or there is none.
    distance: of an attack, the mean over the items of a pixel's largest change (L-inf), 0..1.
    loss_before, loss: of an attack, means of the right answer's loss; see `eval.attacks`.
    report: the file with all of it, beside the robustness report.
    """

    label: str
    condition: Corruption | Attack = Field(discriminator="kind")
    figure: Figure
    relative: float | None
    distance: float | None = None
    loss_before: float | None = None
    loss: float | None = None
    report: str


class RobustnessReport(_Facts):
    """What a sweep found.

    headline: the name of the figure; `plain` says that it is no share.
    clean: the report of the benchmark as it is, with its baselines and receipt.
    mean_corruption: the figure's mean over the corruptions, every kind counting once; None where
        none was measured. mean_relative: the same divided by the clean figure: what is called mPC
        and rPC in https://arxiv.org/abs/1907.07484, section 3.
    """

    headline: str
    plain: bool
    clean: Report
    rows: tuple[Row, ...]
    mean_corruption: float | None
    mean_relative: float | None
    seconds: float

    @property
    def corruptions(self) -> dict[str, dict[int, Row]]:
        """Rows of corruptions by kind and severity."""
        found: dict[str, dict[int, Row]] = {}
        for row in self.rows:
            if isinstance(row.condition, Corruption):
                found.setdefault(row.condition.kind, {})[row.condition.severity] = row
        return found

    @property
    def attacks(self) -> list[Row]:
        """Rows of attacks."""
        return [row for row in self.rows if not isinstance(row.condition, Corruption)]

    def shown(self, value: float | None) -> str:
        """A value of the headline's as text: a share in percent."""
        if value is None:
            return "-"
        return f"{value:.4g}" if self.plain else f"{100 * value:.1f}"


@dataclass(frozen=True)
class Sweep:
    """A report, and the evaluations that it gathers.

    folder: where their reports are.
    changed: by the label of the condition.
    """

    report: RobustnessReport
    folder: Path
    clean: Evaluation
    changed: Mapping[str, Evaluation]


def measure_robustness(
    model: Model,
    benchmark: BenchmarkConfig,
    data: Path,
    out: Path,
    conditions: Sequence[Condition],
    config: EvalConfig | None = None,
    majority_from: Path | None = None,
    command: str | None = None,
) -> Sweep:
    """Ask a benchmark's items as they are and under each condition, and write the reports.

    Each condition has a report of its own in a folder beside `out`, with its predictions: a sweep
    that was killed goes on where it was.

    Args:
        conditions: called unlike, as `eval.conditions.read_conditions` gives them.
        out: the JSON file; the same as Markdown goes beside it.
        majority_from, command: see `eval.run.evaluate`.
    Raises:
        UserError: a condition does not suit the benchmark.
    """
    start = time.perf_counter()
    changed = [benchmark.under(condition) for condition in conditions]
    folder = out.with_suffix("")
    path = folder / f"{CLEAN}.json"
    clean = evaluate(model, benchmark, data, path, config, majority_from, command)
    rows, evaluations = [], {}
    for condition, variant in zip(conditions, changed, strict=True):
        path = folder / f"{_file_name(condition)}.json"
        evaluations[condition.label] = evaluate(model, variant, data, path, config, None, command)
        rows.append(_row(condition, evaluations[condition.label].report, clean.report, path))
    report = gather(clean.report, rows, round(time.perf_counter() - start, 3))
    if rank() == 0:
        write_robustness(out, report)
    return Sweep(report, folder, clean, evaluations)


def _file_name(condition: Condition) -> str:
    return re.sub(r"[^a-z0-9]+", "-", condition.label.lower()).strip("-")


def _row(condition: Condition, report: Report, clean: Report, path: Path) -> Row:
    figure, reference = report.overall.headline(), clean.overall.headline()
    facts: dict[str, float] = {}
    if not isinstance(condition, Corruption):
        _, predictions = read_predictions(predictions_path(path))
        outcomes = [p.attack for p in predictions if p.attack is not None]
        names = ("distance", "loss_before", "loss") if outcomes else ()
        facts = {name: float(np.mean([getattr(o, name) for o in outcomes])) for name in names}
    return Row(
        label=condition.label,
        condition=condition,
        figure=figure,
        relative=_divided(figure.value, reference.value),
        report=f"{path.parent.name}/{path.name}",
        **facts,
    )


def gather(clean: Report, rows: Sequence[Row], seconds: float) -> RobustnessReport:
    """Put the rows of a sweep together, with their means."""
    by_kind: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row.condition, Corruption) and row.figure.value is not None:
            by_kind.setdefault(row.condition.kind, []).append(row.figure.value)
    mean = float(np.mean([np.mean(values) for values in by_kind.values()])) if by_kind else None
    return RobustnessReport(
        headline=clean.headline,
        plain=clean.headline in clean.plain,
        clean=clean,
        rows=tuple(rows),
        mean_corruption=mean,
        mean_relative=_divided(mean, clean.overall.headline().value),
        seconds=seconds,
    )


def _divided(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


def corruption_cells(report: RobustnessReport) -> list[list[str]]:
    """The table of corruptions: a line for each kind, its severities, their mean, and the change.

    The first line is the head.
    """
    lines = [["corruption", *(str(s) for s in SEVERITIES), "mean", "change"]]
    reference = report.clean.overall.headline().value
    for kind, rows in report.corruptions.items():
        values = [rows[s].figure.value if s in rows else None for s in SEVERITIES]
        known = [value for value in values if value is not None]
        mean = float(np.mean(known)) if known else None
        cells = [report.shown(value) for value in (*values, mean)]
        lines.append([kind, *cells, change(_divided(mean, reference))])
    return lines


def attack_cells(report: RobustnessReport) -> list[list[str]]:
    """The table of attacks; the first line is the head."""
    lines = [["attack", report.headline, "95 %", "change", "mean L-inf", "loss before", "loss"]]
    for row in report.attacks:
        value, interval = report.clean.shown(row.figure)
        distance = "-" if row.distance is None else f"{255 * row.distance:.1f}/255"
        losses = ["-" if x is None else f"{x:.2f}" for x in (row.loss_before, row.loss)]
        lines.append([row.label, value, interval, change(row.relative), distance, *losses])
    return lines


def change(relative: float | None) -> str:
    """By how much a figure differs from the clean one, in percent of that."""
    # Adding nothing makes no difference of a minus that rounding leaves.
    return "-" if relative is None else f"{round(100 * (relative - 1), 1) + 0.0:+.1f} %"


def summary(report: RobustnessReport) -> dict[str, str]:
    """The figures in front of the tables, as text by name."""
    clean = report.clean.overall
    found = {}
    for side in report.clean.sides:
        value, interval = report.clean.shown(clean.headline(side))
        found[report.headline if side == "model" else side] = f"{value} ({interval})"
    if report.mean_corruption is not None:
        found["mean under corruption"] = (
            f"{report.shown(report.mean_corruption)} ({change(report.mean_relative)})"
        )
    return found


def terminal_tables(report: RobustnessReport) -> list[Table]:
    """Both tables, where they have lines, for a terminal."""
    tables = []
    for head, *lines in (corruption_cells(report), attack_cells(report)):
        if not lines:
            continue
        table = Table(*head, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for cells in lines:
            table.add_row(*cells)
        tables.append(table)
    return tables


def markdown(report: RobustnessReport) -> str:
    """The report as a page."""
    clean = report.clean
    lines = [f"# Robustness of {clean.run.model.folder} on {clean.title}", ""]
    lines += [f"- {name}: {value}" for name, value in summary(report).items()]
    for head, *rows in (corruption_cells(report), attack_cells(report)):
        if rows:
            ruler = ["---", *["---:"] * (len(head) - 1)]
            lines += ["", *(markdown_line(cells) for cells in (head, ruler, *rows))]
    lines += ["", explain(report), ""]
    lines += [f"- {name}: {value}" for name, value in receipt(clean).items()]
    return "\n".join(lines) + "\n"


def explain(report: RobustnessReport) -> str:
    """What the tables show, in words."""
    parts = [
        f"{report.headline}{'' if report.plain else ' in percent'}; change: against the clean "
        "pictures, in percent of that figure."
    ]
    if report.corruptions:
        parts.append(
            "Corruptions at severities 1 to 5 are ImageNet-C's, rotation ours "
            "(eval/corruptions.py); in the mean every kind counts once."
        )
    if report.attacks:
        parts.append(
            "Attacks change 8-bit pixels of the resized canvas (eval/attacks.py); the loss is that "
            "of the right answer, or of the target."
        )
    return " ".join(parts)


def write_robustness(out: Path, report: RobustnessReport) -> None:
    """Write `out` (JSON), and beside it the same as Markdown."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
