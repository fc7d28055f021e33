"""A finished evaluation, read from its files again: what was measured, and what was answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval.benchmark import BenchmarkConfig, describe
from eval.elsewhere import read_given
from eval.items import items_sha256
from eval.predictions import read_predictions
from eval.report import Report
from eval.run import predictions_path
from eval.score_report import score_given
from eval.scoring import Scored, read_answers, score
from vlm.errors import UserError

# Of the receipts, what two runs must share for their figures to be comparable.
SHARED = ("benchmark", "data.sha256", "data.limit")
# What may differ and is worth knowing; models differ by design.
NOTED = ("preprocessing", "dtype", "device", "commit", "versions")


@dataclass(frozen=True)
class FinishedRun:
    """A model's answers to a benchmark, and the receipt of how they came.

    path: of the report, or of predictions that were made elsewhere.
    name: the model's folder, or the predictions' file.
    benchmark: as it was then.
    data: the folder of the benchmark's files.
    """

    path: Path
    name: str
    benchmark: BenchmarkConfig
    data: Path
    scored: Scored
    receipt: Mapping[str, Any]

    @staticmethod
    def read(path: Path, data: Path | None = None) -> "FinishedRun":
        """Read a report's JSON file, the predictions beside it, and the items.

        Args:
            data: where the benchmark's files lie; None: where they lay then.
        Raises:
            UserError: a file is missing or damaged, or the items are not those that were asked.
        """
        report = _read_report(path)
        folder = data or Path(report.run.data.folder)
        benchmark = _benchmark(report)
        read = islice(benchmark.items(folder), report.run.data.limit)
        items = [item.without_content() for item in read]
        _, predictions = read_predictions(predictions_path(path))
        known = {prediction.id: prediction for prediction in predictions}
        missing = [item.id for item in items if item.id not in known]
        if missing:
            raise UserError(
                f"{predictions_path(path)} has no prediction for {len(missing)} of {len(items)} "
                f"items of {folder}, such as {missing[0]!r}; go on with `vlm eval`"
            )
        ordered = [known[item.id] for item in items]
        if items_sha256(items, (p.images for p in ordered)) != report.run.data.sha256:
            raise UserError(
                f"{folder} does not hold what {path} was measured on; --data names another folder"
            )
        answers = read_answers(benchmark, items, ordered)
        scored = score(benchmark, items, answers)
        receipt = report.run.model_dump(mode="json")
        return FinishedRun(path, report.run.model.folder, benchmark, folder, scored, receipt)

    @staticmethod
    def read_elsewhere(path: Path, benchmark: BenchmarkConfig, data: Path) -> "FinishedRun":
        """Read predictions that were made elsewhere, as `vlm eval score` does.

        Raises:
            UserError: they fit no items, or an item has none.
        """
        found = benchmark.items(data, names_only=not benchmark.only_with_pictures)
        items = [item.without_content() for item in found]
        scored, _ = score_given(benchmark, items, read_given(path))
        receipt = {
            "predictions": str(path),
            "benchmark": dict(describe(benchmark)),
            "data": {"folder": str(data), "sha256": items_sha256(items)},
        }
        return FinishedRun(path, str(path), benchmark, data, scored, receipt)


def read_benchmark(path: Path) -> BenchmarkConfig:
    """The benchmark of a report's JSON file, as it was then.

    Raises:
        UserError: it is no report.
    """
    return _benchmark(_read_report(path))


def differences(
    a: FinishedRun, b: FinishedRun, names: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    """Fields of two receipts that differ, by their dotted names, with both values.

    Args:
        names: of the fields that are looked at, with all below them.
    """
    flat_a, flat_b = dict(_flat(a.receipt)), dict(_flat(b.receipt))
    return {
        name: (flat_a.get(name), flat_b.get(name))
        for name in {**flat_a, **flat_b}
        if any(name == wanted or name.startswith(f"{wanted}.") for wanted in names)
        and flat_a.get(name) != flat_b.get(name)
    }


def refuse_unlike(a: FinishedRun, b: FinishedRun) -> None:
    """Check that two runs asked the same, in the same way.

    Raises:
        UserError: they did not; names each field with both values.
    """
    found = differences(a, b, SHARED)
    if found:
        listed = "; ".join(f"{name}: {old!r} and {new!r}" for name, (old, new) in found.items())
        raise UserError(
            f"{a.path} and {b.path} are not alike: {listed}. Measure both in the same way, or "
            "compare what they have in common with --force"
        )


def _read_report(path: Path) -> Report:
    try:
        return Report.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is no report of `vlm eval`: {where}: {first['msg']}") from None


def _benchmark(report: Report) -> BenchmarkConfig:
    """The benchmark by the settings in a receipt, which leaves out where it comes from."""
    source = {"homepage": "", "get": ""}
    fields = {**report.run.benchmark, "title": report.title, "source": source}
    return BenchmarkConfig.model_validate(fields)


def _flat(values: Mapping[str, Any], prefix: str = "") -> "list[tuple[str, Any]]":
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found
