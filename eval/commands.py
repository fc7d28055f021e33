"""`vlm eval`: what a model can do, measured."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from eval.bench_commands import Device
from eval.compare_command import compare_runs
from eval.consent import AllowCode, Consent, JudgeModel, JudgeOption
from eval.score_command import score_predictions

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


evaluation.command("compare")(compare_runs)
evaluation.command("score")(score_predictions)


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
    judge: JudgeOption = None,
    judge_model: JudgeModel = None,
    allow_code_execution: AllowCode = False,
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
    from eval.conditions import read_conditions
    from eval.run_command import measure, plan

    conditions = read_conditions(corruption or (), attack or ())
    asked = plan(
        benchmark or ["shards"], overrides or (), data, model, out, majority_from, conditions
    )
    metrics = [metric for each in asked for metric in each.benchmark.metrics]
    consent = Consent(metrics, allow_code_execution, judge, judge_model)

    from eval.run import EvalConfig

    config = EvalConfig(limit=limit, batch_size=batch_size, fresh=fresh)
    measure(model, asked, conditions, config, majority_from, consent, device, dtype)


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


@evaluation.command("get")
def get_files(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A benchmark, or a YAML file.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where its files go.")],
    overrides: Overrides = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of the data set.")
    ] = None,
) -> None:
    """Download a benchmark's files from the Hugging Face hub, where it is there."""
    from eval.benchmark import find_benchmark
    from eval.download import download

    benchmark = find_benchmark(name, tuple(overrides or ()))
    commit = download(benchmark, folder, revision)
    print(f"{benchmark.source.hub} at commit {commit} is in {folder}")
    print(f"measure with `vlm eval MODEL --benchmark {name} --data {folder}`")


@evaluation.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
def run_lm_eval(context: typer.Context) -> None:
    """Run lm-eval's command, which then knows our models by `--model vlm`."""
    from vlm.errors import UserError

    try:
        from eval.harness.lm_eval import run
    except ImportError as error:
        raise UserError(f"lm-eval is missing ({error}): install vlm's extra `eval`") from error

    run(context.args)
