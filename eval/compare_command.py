"""`vlm eval compare`: two models on the same items."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from eval.consent import AllowCode, Consent, JudgeModel, JudgeOption


def compare_runs(
    a: Annotated[Path, typer.Argument(metavar="A", help="The report of one model, a JSON file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The report of another.")],
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A and B are predictions made elsewhere, in the formats of `vlm eval score`; "
            "needs --data.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The folder of the benchmark's files; default: where it was then."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="A page with pictures.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Compare runs that did not ask the same in the same way."),
    ] = False,
    allow_code_execution: AllowCode = False,
    judge: JudgeOption = None,
    judge_model: JudgeModel = None,
) -> None:
    """Compare two models on the items that both answered.

    The table shows by how much B is better than A, of each type of items and of all, with paired
    95 % intervals and p values; below it, answers that one had right and the other had not.
    """
    from vlm.errors import UserError

    if out is not None and (out.suffix != ".html" or out.is_dir()):
        raise UserError(f"--out is {out}, needed: a file that ends in .html")
    if benchmark is not None and data is None:
        raise UserError(
            "predictions made elsewhere need --data, the folder of the benchmark's files"
        )

    from rich.console import Console

    from eval.benchmark import find_benchmark
    from eval.compare import compare
    from eval.compare_page import write_comparison
    from eval.compare_report import print_comparison
    from eval.finished_run import FinishedRun, read_benchmark, refuse_unlike
    from eval.sandbox import code_execution_allowed

    config = read_benchmark(a) if benchmark is None else find_benchmark(benchmark)
    consent = Consent(config.metrics, allow_code_execution, judge, judge_model)
    runs = []
    for path in (a, b):
        # Judgements that lie beside a report are not asked for again.
        with consent.given(path, path.stem):
            if benchmark is None or data is None:
                runs.append(FinishedRun.read(path, data))
            else:
                runs.append(FinishedRun.read_elsewhere(path, config, data))
    one, other = runs
    if not force:
        refuse_unlike(one, other)
    with code_execution_allowed() if allow_code_execution else nullcontext():
        comparison = compare(one.benchmark, one.scored, other.scored)
    print_comparison(Console(), comparison, one, other)
    if out is not None:
        write_comparison(out, comparison, one, other)
        print(f"page: {out}")
