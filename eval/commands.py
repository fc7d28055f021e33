"""`vlm eval`: what a model can do, measured."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from eval.bench_commands import Device

DEFAULT = "run"

Benchmarks = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark",
        metavar="NAME",
        help="By name (`vlm eval list`), or a YAML file; may be repeated. Default: shards.",
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        help="The folder of the benchmark's files; of several benchmarks, the folder of theirs, "
        "each called by the benchmark's name."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the benchmark to change."),
]


class RunUnlessNamed(TyperGroup):
    """A group whose command `run` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front of arguments that name no command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(add_completion=False)
evaluation = typer.Typer(cls=RunUnlessNamed, no_args_is_help=True)
app.add_typer(evaluation, name="eval", help="Measure models: `vlm eval MODEL --data FOLDER`.")


@app.callback()
def main() -> None:
    """Measure models."""


@evaluation.command(DEFAULT)
def run_benchmarks(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    data: Data,
    overrides: Overrides = None,
    benchmark: Benchmarks = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="The report; Markdown, HTML and predictions go beside it. "
            "Default: MODEL/eval/BENCHMARK.json, of packed shards MODEL/eval/NAME-OF-DATA.json.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first so many only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items answered together.")] = 32,
    majority_from: Annotated[
        Path | None,
        typer.Option(
            help="Training data of the same form that the majority baseline counts; "
            "default: the evaluated items."
        ),
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:SEVERITY",
            help="Ask again with damaged pictures: `blur:3`, `blur` at all five severities, "
            "`all` kinds; may be repeated. The report compares.",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:NAME=VALUE,...",
            help="Ask again with attacked pictures: `pgd:eps=4/255,steps=10`, `patch:share=0.05`; "
            "may be repeated.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask all again, whatever predictions are there.")
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "auto",
) -> None:
    """Measure a model on benchmarks, beside what can be answered without looking.

    The table shows, for each type of items and overall, the model's figure, that of the same model
    without the pictures (blind), and that of the most frequent answer (majority). An evaluation
    that was killed goes on when it is started again. `torchrun -m vlm eval ...` shares the items
    among GPUs.
    """
    from eval.benchmark import find_benchmark
    from eval.conditions import read_conditions
    from eval.ranks import own_device, rank
    from vlm.errors import UserError

    conditions = read_conditions(corruption or (), attack or ())
    names = benchmark or ["shards"]
    if len(names) > 1 and (out is not None or majority_from is not None):
        raise UserError("--out and --majority-from are of one benchmark; leave them out of several")
    # Mistakes are told before the model is loaded.
    benchmarks = [find_benchmark(name, tuple(overrides or ())) for name in names]
    folders = [data / b.name if len(names) > 1 else data for b in benchmarks]
    reports = []
    for chosen, folder in zip(benchmarks, folders, strict=True):
        if next(chosen.items(folder), None) is None:
            raise UserError(f"{folder} holds no item of {chosen.name}")
        for condition in conditions:
            chosen.under(condition)
        name = folder.resolve().name if chosen.name == "shards" else chosen.name
        kind = ".robustness" if conditions else ""
        reports.append(_report_path(out or model / "eval" / f"{name}{kind}.json"))

    from rich.console import Console

    from eval.report import further_figures, terminal_table
    from eval.report_page import write_page
    from eval.robustness_command import sweep
    from eval.run import EvalConfig, evaluate, predictions_path
    from vlm.api import load

    loaded = load(model, device=own_device(device), dtype=dtype)
    for path in reports:  # before the questions, not after an hour of them
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"no report can be written to {path}: {error}") from error
    config = EvalConfig(limit=limit, batch_size=batch_size, fresh=fresh)
    command = shlex.join(["vlm", *sys.argv[1:]])
    for chosen, folder, path in zip(benchmarks, folders, reports, strict=True):
        if conditions:
            sweep(loaded, chosen, folder, path, conditions, config, majority_from, command)
            continue
        evaluation = evaluate(loaded, chosen, folder, path, config, majority_from, command)
        report = evaluation.report
        if rank() == 0:
            write_page(path.with_suffix(".html"), report, evaluation.sides, chosen, folder)
            Console().print(terminal_table(report))
            for name, text in further_figures(report).items():
                print(f"{name}: {text}")
            print(f"report: {path}, {path.with_suffix('.md').name}, {path.stem}.html")
            print(f"predictions: {predictions_path(path)}")


@evaluation.command("list")
def list_benchmarks() -> None:
    """List the benchmarks: what each measures, and where its data comes from."""
    from rich.console import Console
    from rich.table import Table

    from eval.benchmark import benchmark_names, find_benchmark

    table = Table("name", "what", "metrics", "data", box=None, padding=(0, 2, 0, 0))
    for name in benchmark_names():
        config = find_benchmark(name)
        table.add_row(name, config.title, ", ".join(config.metrics), config.source.homepage)
    Console(soft_wrap=True).print(table)


@evaluation.command("compare")
def compare_reports(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="The report of one model.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="The report of another.")],
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
) -> None:
    """Compare two models on the items that both answered.

    The table shows by how much B is better than A, of each type of items and of all, with paired
    95 % intervals and p values; below it, answers that one had right and the other had not.
    """
    from vlm.errors import UserError

    if out is not None and (out.suffix != ".html" or out.is_dir()):
        raise UserError(f"--out is {out}, needed: a file that ends in .html")

    from rich.console import Console

    from eval.compare import compare
    from eval.compare_page import write_comparison
    from eval.compare_report import print_comparison
    from eval.finished_run import FinishedRun, refuse_unlike

    runs = FinishedRun.read(a, data), FinishedRun.read(b, data)
    if not force:
        refuse_unlike(*runs)
    comparison = compare(runs[0].benchmark, runs[0].scored, runs[1].scored)
    print_comparison(Console(), comparison, *runs)
    if out is not None:
        write_comparison(out, comparison, *runs)
        print(f"page: {out}")


@evaluation.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
def run_lm_eval(context: typer.Context) -> None:
    """Run lm-eval's command, which then knows our models by `--model vlm`."""
    from eval.harness.lm_eval import run

    run(context.args)


def _report_path(path: Path) -> Path:
    from vlm.errors import UserError

    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"--out is {path}, needed: a file that ends in .json")
    return path
