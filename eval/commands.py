"""The command that measures a model."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command("eval")
def evaluate_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    data: Annotated[Path, typer.Option(help="A folder of packed questions.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="The report; Markdown and predictions go beside it. "
            "Default: MODEL/eval/NAME-OF-DATA.json.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first so many only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    majority_from: Annotated[
        Path | None,
        typer.Option(
            help="Packed training questions that the majority baseline counts; "
            "default: the evaluated ones."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure a model on packed questions, beside what can be answered without looking.

    The table shows, for each question type and overall, the model's accuracy, that of the same
    model without the pictures (blind), and that of the most frequent answer (majority).
    """
    from rich.console import Console

    from data.pack import Manifest
    from vlm.errors import UserError

    report_path = out or model / "eval" / f"{data.resolve().name}.json"
    if report_path.suffix != ".json" or report_path.is_dir():
        raise UserError(f"--out is {report_path}, needed: a file that ends in .json")
    Manifest.read(data)  # a wrong path is told before the model is loaded

    from eval.report import predictions_path, terminal_table, write_report
    from eval.run import EvalConfig, evaluate
    from vlm.api import load

    config = EvalConfig(limit=limit, batch_size=batch_size, max_tokens=max_tokens)
    loaded = load(model, device=device)
    try:  # before the questions, not after an hour of them
        report_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no report can be written to {report_path}: {error}") from error
    evaluation = evaluate(loaded, data, config, majority_from)
    Console().print(terminal_table(evaluation.report))
    write_report(report_path, evaluation.report, evaluation.predictions)
    print(f"report: {report_path} and {report_path.with_suffix('.md').name}")
    print(f"predictions: {predictions_path(report_path)}")
