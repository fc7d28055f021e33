"""`vlm eval score`: figures of predictions that were made elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eval.matching import Matched
    from eval.scoring import Scored


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
) -> None:
    """Score predictions that were made elsewhere, by a benchmark's rule and metrics.

    docs/evaluation.md lists the published formats that are read. Each prediction must belong to an
    item and each item have one: what does not fit is counted and named.
    """
    from rich.console import Console

    from eval.benchmark import find_benchmark
    from eval.elsewhere import Fields, read_given
    from eval.matching import match, some
    from eval.scoring import score
    from vlm.errors import UserError

    config = find_benchmark(benchmark, tuple(overrides or ()))
    items = list(config.items(data, names_only=not config.only_with_pictures))
    known = sorted({item.type for item in items})
    unknown = [name for name in types or () if name not in known]
    if unknown:
        raise UserError(f"{config.name} has no items of type {unknown[0]!r}; has {some(known)}")
    items = [item.without_content() for item in items if not types or item.type in types]
    matched = match(items, read_given(predictions, Fields(id_field, answer_field)))
    missing = matched.missing(items)
    if missing and not allow_missing:
        raise UserError(
            f"{len(missing)} of {len(items)} items have no prediction: {some(missing)}. "
            "--allow-missing counts them as wrong"
        )
    scored = score(config, items, matched.answers(config.rule, items))
    console = Console()
    console.print(_table(config.title, scored))
    print(f"{len(items)} items, predictions matched by {matched.how}")
    if missing:
        print(f"{len(missing)} items have no prediction and count as wrong: {some(missing)}")
    if report is not None:
        _write(report, _facts(config, data, predictions, scored, matched))
        print(f"figures: {report}")
