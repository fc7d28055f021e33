"""The report of an evaluation: figures beside their baselines, and what they were measured on."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.baselines import Majority
from eval.metrics import Accuracy, accuracy, accuracy_by_type, score
from eval.predict import Prediction, write_predictions

COLUMNS = ("questions", "n", "accuracy", "95 %", "blind", "95 %", "majority", "95 %")


class Row(BaseModel):
    """The figures of some questions: the model, the model without pictures, the usual answer."""

    model_config = ConfigDict(frozen=True)

    num_questions: int
    accuracy: Accuracy
    blind: Accuracy
    majority: Accuracy


class ModelFacts(BaseModel):
    """Which model was measured.

    weights_sha256: of each safetensors file, as `sha256sum` prints it; under `base`, that of the
        weights below an adapter (vlm/weights/fingerprint.py).
    seed, commit: those of its training.
    """

    model_config = ConfigDict(frozen=True)

    folder: str
    stage: str
    weights_sha256: dict[str, str]
    seed: int | None
    commit: str | None


class DataFacts(BaseModel):
    """Which questions were asked; `limit` is None when all were."""

    model_config = ConfigDict(frozen=True)

    folder: str
    manifest_sha256: str
    limit: int | None


class Run(BaseModel):
    """How an evaluation was run."""

    model_config = ConfigDict(frozen=True)

    model: ModelFacts
    data: DataFacts
    majority_from: DataFacts | None
    batch_size: int
    max_tokens: int
    device: str
    commit: str | None
    versions: dict[str, str]
    seconds: float


class Report(BaseModel):
    """What an evaluation found.

    accuracy, blind_accuracy, majority_accuracy: over all questions, 0..1; `overall` has them with
        their intervals.
    """

    model_config = ConfigDict(frozen=True)

    accuracy: float
    blind_accuracy: float
    majority_accuracy: float
    overall: Row
    types: dict[str, Row]
    majority_answers: dict[str, str]
    run: Run

    @property
    def rows(self) -> list[tuple[str, Row]]:
        """The lines of the table: the types, then all questions."""
        return [*self.types.items(), ("all", self.overall)]


def build_report(predictions: Sequence[Prediction], majority: Majority, run: Run) -> Report:
    """Gather predictions into figures.

    Args:
        predictions: at least one.
    """
    scored = {
        "accuracy": [p.correct for p in predictions],
        "blind": [p.blind_correct for p in predictions],
        "majority": [score(majority.answer(p.type), p.answers) for p in predictions],
    }
    overall = {name: accuracy(scores) for name, scores in scored.items()}
    kinds = [p.type for p in predictions]
    by_type = {
        name: accuracy_by_type(zip(kinds, scores, strict=True)) for name, scores in scored.items()
    }
    return Report(
        accuracy=overall["accuracy"].value,
        blind_accuracy=overall["blind"].value,
        majority_accuracy=overall["majority"].value,
        overall=Row(num_questions=len(predictions), **overall),
        types={
            kind: Row(
                num_questions=by_type["accuracy"][kind].num_questions,
                **{name: figures[kind] for name, figures in by_type.items()},
            )
            for kind in by_type["accuracy"]
        },
        majority_answers={kind: majority.answer(kind) for kind in by_type["accuracy"]},
        run=run,
    )


def terminal_table(report: Report) -> Table:
    """The figures as a table for a terminal, in percent."""
    # Narrow enough for 80 columns.
    table = Table(*COLUMNS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in report.rows:
        table.add_row(*_cells(name, row), style="bold" if row is report.overall else None)
    return table


def markdown(report: Report) -> str:
    """The report as a page."""
    run = report.run
    lines = [
        f"# {run.model.folder} on {run.data.folder}",
        "",
        _markdown_line(COLUMNS),
        _markdown_line(["---", *["---:"] * (len(COLUMNS) - 1)]),
        *(_markdown_line(_cells(name, row)) for name, row in report.rows),
        "",
        "Percent of right answers, with 95 % Wilson intervals. Blind: the same model, the same "
        "questions, no picture. Majority: always the most frequent answer of the question's type, "
        f"counted on {run.majority_from.folder if run.majority_from else 'these questions'}.",
        "",
        *(f"- {name}: {value}" for name, value in _facts(report).items()),
    ]
    return "\n".join(lines) + "\n"


def write_report(out: Path, report: Report, predictions: Sequence[Prediction]) -> None:
    """Write `out` (JSON), and beside it the same as Markdown, and the predictions as JSONL."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    write_predictions(predictions_path(out), predictions)


def predictions_path(out: Path) -> Path:
    """Where `write_report` puts the predictions."""
    return out.with_suffix(".predictions.jsonl")


def _facts(report: Report) -> dict[str, str]:
    run = report.run
    limit = "" if run.data.limit is None else f", the first {run.data.limit} questions"
    hashes = ", ".join(f"{name} `{sha}`" for name, sha in run.model.weights_sha256.items())
    return {
        "model": f"stage {run.model.stage}, seed {run.model.seed}, "
        f"trained at commit {run.model.commit}",
        "weights (sha256)": hashes,
        "data manifest (sha256)": f"`{run.data.manifest_sha256}`{limit}",
        "measured": f"at commit {run.commit} on {run.device} in {run.seconds:.1f} s, "
        f"batch size {run.batch_size}, at most {run.max_tokens} tokens an answer",
        "versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
    }


def _cells(name: str, row: Row) -> list[str]:
    cells = [name, str(row.num_questions)]
    for figure in (row.accuracy, row.blind, row.majority):
        cells += [f"{100 * figure.value:.1f}", f"{100 * figure.low:.1f}-{100 * figure.high:.1f}"]
    return cells


def _markdown_line(cells: Sequence[str]) -> str:
    # A type may be any text of the data.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
