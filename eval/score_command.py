"""`vlm eval score`: figures of predictions that were made elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from eval.consent import AllowCode, Consent, JudgeModel, JudgeOption


def score_predictions(
    benchmark: Annotated[
        str, typer.Option(metavar="NAME", help="By name (`vlm eval list`), or a YAML file.")
    ],
    predictions: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="JSON, JSON Lines, TSV, CSV or Excel with an id and an answer in each row, JSON "
            "with answers by id, MME's folder of text files; or a folder of such.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(help="The folder of the benchmark's files; pictures need not be there."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the benchmark to change."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Write all figures here.")
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="NAME", help="Only items of this type; may be repeated."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Count items without prediction as wrong.")
    ] = False,
    id_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="What rows call the id, if not as usual.")
    ] = None,
    answer_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="What rows call the prediction.")
    ] = None,
    judge: JudgeOption = None,
    judge_model: JudgeModel = None,
    allow_code_execution: AllowCode = False,
) -> None:
    """Score predictions that were made elsewhere, by a benchmark's rule and metrics.

    docs/predictions.md lists the published formats that are read. Each prediction must belong to an
    item and each item have one: what does not fit is counted and named.
    """
    from rich.console import Console

    from eval.benchmark import find_benchmark
    from eval.elsewhere import Fields, read_given
    from eval.matching import some
    from eval.score_report import build_score_report, score_given, tables, write_score_report
    from vlm.errors import UserError

    if report is not None and (report.suffix != ".json" or report.is_dir()):
        raise UserError(f"--json is {report}, needed: a file that ends in .json")
    config = find_benchmark(benchmark, tuple(overrides or ()))
    items = list(config.items(data, names_only=not config.only_with_pictures))
    known = sorted({item.type for item in items})
    unknown = [name for name in types or () if name not in known]
    if unknown:
        raise UserError(f"{config.name} has no items of type {unknown[0]!r}; it has {some(known)}")
    items = [item.without_content() for item in items if not types or item.type in types]
    given = read_given(predictions, Fields(id_field, answer_field))
    consent = Consent(config.metrics, allow_code_execution, judge, judge_model)
    with consent.given(report or predictions, predictions.stem):
        scored, matched = score_given(config, items, given, allow_missing)
    found = build_score_report(config, data, predictions, scored, matched)
    for table in tables(found):
        Console().print(table)
    print(f"{len(items)} items, predictions matched by {matched.how}")
    if found.missing:
        print(f"{len(found.missing)} without prediction count as wrong: {some(found.missing)}")
    if report is not None:
        write_score_report(report, found)
        print(f"figures: {report}")
