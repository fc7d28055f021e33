"""The report of an evaluation: figures beside their baselines, and the receipt of how they came."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.intervals import Figure
from eval.scoring import Scored

Side = Literal["model", "blind", "majority"]
SIDES: tuple[Side, ...] = ("model", "blind", "majority")


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelFacts(_Facts):
    """Which model was measured.

    weights_sha256: of each safetensors file, as `sha256sum` prints it; under `base`, that of the
        weights below an adapter (vlm/weights/fingerprint.py).
    seed, commit: those of its training.
    """

    folder: str
    stage: str
    weights_sha256: dict[str, str]
    seed: int | None
    commit: str | None


class DataFacts(_Facts):
    """Which items were asked.

    sha256: of all that was asked and of what counts as right, pictures too; see
        `eval.items.items_sha256`.
    limit: None when all were.
    num_left_out: of items whose pictures are not there, as the benchmark allows.
    num_published: how many items the published files have, where the benchmark says so.
    """

    folder: str
    sha256: str
    num_items: int
    limit: int | None
    num_left_out: int = 0
    num_published: int | None


class Run(_Facts):
    """The receipt: everything that a figure depends on.

    benchmark: its settings, prompt and decoding among them.
    prompt: the first item's as the model reads it, with its chat template; empty where an encoder's
        embeddings are compared.
    preprocessing: of pictures.
    max_answer_tokens: where a written answer was cut off: the benchmark's limit, or less in a model
        of few positions.
    num_cut: of prompts that were too long for the model, and shortened.
    commit, versions: of the code that measured.
    command: what was typed, where it was.
    judge: who graded open answers.
    """

    model: ModelFacts
    data: DataFacts
    majority_from: DataFacts | None
    benchmark: dict[str, Any]
    prompt: str
    preprocessing: dict[str, Any]
    max_answer_tokens: int
    num_cut: int
    batch_size: int
    device: str
    dtype: str
    commit: str | None
    versions: dict[str, str]
    seconds: float
    command: str | None = None
    judge: str | None = None


class Row(_Facts):
    """The figures of some items by side: the model, and its baselines where there are any."""

    num_items: int
    figures: dict[Side, dict[str, Figure]]

    def headline(self, side: Side = "model") -> Figure:
        """The first figure of a side."""
        return next(iter(self.figures[side].values()))


class Report(_Facts):
    """What an evaluation found.

    headline: the name of the first figure.
    plain: figures that are no shares and are not shown in percent.
    types: a row for each type of items, where there are several.
    """

    benchmark: str
    title: str
    headline: str
    plain: tuple[str, ...]
    overall: Row
    types: dict[str, Row]
    run: Run

    @property
    def rows(self) -> list[tuple[str, Row]]:
        """The lines of the table: the types, then all items."""
        return [*self.types.items(), ("all", self.overall)]

    @property
    def sides(self) -> list[Side]:
        """The model, and its baselines that were measured."""
        return list(self.overall.figures)

    def shown(self, figure: Figure, name: str | None = None) -> tuple[str, str]:
        """A figure and its interval as text: shares in percent."""
        if figure.value is None:
            return "-", "-"
        form = _plain if (name or self.headline) in self.plain else _percent
        bounds = [form(bound) for bound in (figure.low, figure.high) if bound is not None]
        return form(figure.value), "-".join(bounds)


def build_report(title: str, sides: Mapping[Side, Scored], run: Run) -> Report:
    """Gather what was measured of each side into figures."""
    model = sides["model"]
    types = model.types
    overall = _row(sides, None)
    return Report(
        benchmark=str(run.benchmark["name"]),
        title=title,
        headline=next(iter(overall.figures["model"])),
        plain=tuple(sorted(name for m in model.measured.values() for name in m.plain)),
        overall=overall,
        types={kind: _row(sides, kind) for kind in types} if len(types) > 1 else {},
        run=run,
    )


def terminal_table(report: Report) -> Table:
    """The headline of each type and its baselines as a table for a terminal."""
    # Narrow enough for 80 columns.
    columns = ["items", "n"]
    for side in report.sides:
        columns += [report.headline if side == "model" else side, "95 %"]
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in report.rows:
        cells = [name, str(row.num_items)]
        for side in report.sides:
            cells += report.shown(row.headline(side))
        table.add_row(*cells, style="bold" if row is report.overall else None)
    return table


def further_figures(report: Report) -> dict[str, str]:
    """The model's other figures over all items, as text: `value (low-high)`."""
    found = {}
    for name, figure in report.overall.figures["model"].items():
        if name != report.headline:
            value, interval = report.shown(figure, name)
            found[name] = f"{value} ({interval})"
    return found


def markdown(report: Report) -> str:
    """The report as a page."""
    run = report.run
    columns = ["items", "n"]
    for side in report.sides:
        columns += [report.headline if side == "model" else side, "95 %"]
    lines = [
        f"# {run.model.folder} on {report.title}",
        "",
        markdown_line(columns),
        markdown_line(["---", *["---:"] * (len(columns) - 1)]),
    ]
    for name, row in report.rows:
        cells = [name, str(row.num_items)]
        for side in report.sides:
            cells += report.shown(row.headline(side))
        lines.append(markdown_line(cells))
    lines += ["", explain(report), ""]
    further = further_figures(report)
    if further:
        lines += [f"- {name}: {text}" for name, text in further.items()] + [""]
    lines += [f"- {name}: {value}" for name, value in receipt(report).items()]
    return "\n".join(lines) + "\n"


def explain(report: Report) -> str:
    """What the columns are, in words."""
    share = report.headline not in report.plain
    parts = [
        f"{report.headline}{' in percent' if share else ''}, with 95 % intervals from "
        "resampling pictures (items, where there are none)."
    ]
    if "blind" in report.sides:
        parts.append("Blind: the same model, the same items, no picture.")
    if "majority" in report.sides:
        source = report.run.majority_from
        counted = source.folder if source else "these items"
        parts.append(
            f"Majority: always the most frequent answer of the item's type, counted on {counted}."
        )
    return " ".join(parts)


def receipt(report: Report) -> dict[str, str]:
    """What the figures were measured on and how, as text by name."""
    run = report.run
    data = run.data
    asked = f"{data.num_items} items"
    if data.limit is not None:
        asked = f"the first {data.num_items} items"
    if data.num_published not in (None, data.num_items):
        asked += f" of {data.num_published} published"
    if data.num_left_out:
        asked += f" ({data.num_left_out} left out, for their pictures are not there)"
    settings = {
        name: value
        for name, value in run.benchmark.items()
        if value not in ({}, [], "", None) and name not in ("name", "prompt", "files")
    }
    asked_so = {}
    if run.prompt:
        asked_so = {
            "prompt": f"`{run.benchmark['prompt']!r}`, of the first item: `{run.prompt!r}`",
            "length": f"answers of at most {run.max_answer_tokens} tokens; {run.num_cut} prompts "
            "were too long for the model and cut",
        }
    return {
        "model": f"stage {run.model.stage}, seed {run.model.seed}, "
        f"trained at commit {run.model.commit}",
        "weights (sha256)": ", ".join(
            f"{name} `{sha}`" for name, sha in run.model.weights_sha256.items()
        ),
        "data": f"{asked} of {data.folder}, sha256 `{data.sha256}`",
        "benchmark": ", ".join(f"{name} {value}" for name, value in settings.items()),
        **asked_so,
        **({} if run.judge is None else {"judge": run.judge}),
        "pictures": ", ".join(f"{name} {value}" for name, value in run.preprocessing.items()),
        "measured": f"at commit {run.commit} on {run.device} in {run.dtype}, {run.seconds:.1f} s, "
        f"batch size {run.batch_size}",
        "versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
    }


def write_report(out: Path, report: Report) -> None:
    """Write `out` (JSON), and beside it the same as Markdown."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


def _percent(share: float) -> str:
    # Narrow enough for three intervals in a terminal.
    return "100" if share == 1 else f"{100 * share:.1f}"


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _row(sides: Mapping[Side, Scored], kind: str | None) -> Row:
    return Row(
        num_items=sides["model"].num_items(kind),
        figures={side: scored.figures(kind) for side, scored in sides.items()},
    )


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a table."""
    """A line of a table."""
    # A type may be any text of the data.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
