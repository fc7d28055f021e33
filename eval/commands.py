"""`vlm eval`: what a model can do, measured."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from eval.bench_commands import Device
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
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FOLDER",
            help="Grades open answers: an endpoint of OpenAI's form (key in VLM_JUDGE_API_KEY) or "
            "a model folder.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the endpoint calls the judge.")
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="Run programs that the model wrote; docs/text_benchmarks.md says how confined.",
        ),
    ] = False,
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
    from contextlib import ExitStack

    from eval.benchmark import find_benchmark
    from eval.formats.mt_bench import write_answers
    from eval.judge import Grader, judged_by, open_judge
    from eval.metrics.table import RUN_CODE
    from eval.ranks import own_device, rank
    from eval.sandbox import NOT_ALLOWED, code_execution_allowed
    from vlm.errors import UserError

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
        if RUN_CODE.intersection(chosen.metrics) and not allow_code_execution:
            raise UserError(NOT_ALLOWED)
        name = folder.resolve().name if chosen.name == "shards" else chosen.name
        reports.append(_report_path(out or model / "eval" / f"{name}.json"))

    from rich.console import Console

    from eval.report import further_figures, terminal_table
    from eval.report_page import write_page
    from eval.run import EvalConfig, evaluate, predictions_path
    from eval.zero_shot import ZeroShot, for_towers
    from eval.zero_shot_run import evaluate_zero_shot
    from vlm.api import Model, load

    loaded: Model | ZeroShot
    if for_towers(benchmarks):
        if majority_from is not None:
            raise UserError("--majority-from is for questions, which an encoder is not asked")
        loaded = ZeroShot.load(model, own_device(device), dtype, batch_size)
    else:
        loaded = load(model, device=own_device(device), dtype=dtype)
    for path in reports:  # before the questions, not after an hour of them
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"no report can be written to {path}: {error}") from error
    grading = None if judge is None else open_judge(judge, judge_model, os.environ)
    config = EvalConfig(limit=limit, batch_size=batch_size, fresh=fresh)
    command = shlex.join(["vlm", *sys.argv[1:]])
    for chosen, folder, path in zip(benchmarks, folders, reports, strict=True):
        with ExitStack() as around:
            if allow_code_execution:
                around.enter_context(code_execution_allowed())
            if grading is not None:
                kept = path.with_suffix(".judgements.jsonl")
                around.enter_context(judged_by(Grader(grading, kept, model.resolve().name)))
            if isinstance(loaded, ZeroShot):
                evaluation = evaluate_zero_shot(loaded, chosen, folder, path, config, command)
            else:
                evaluation = evaluate(loaded, chosen, folder, path, config, majority_from, command)
        report = evaluation.report
        if rank() == 0:
            write_page(path.with_suffix(".html"), report, evaluation.sides, chosen, folder)
            Console().print(terminal_table(report))
            for name, text in further_figures(report).items():
                print(f"{name}: {text}")
            print(f"report: {path}, {path.with_suffix('.md').name}, {path.stem}.html")
            print(f"predictions: {predictions_path(path)}")
            if chosen.format == "mt_bench":
                given = path.with_suffix(".answers.jsonl")
                scored = evaluation.scored
                name = model.resolve().name
                write_answers(given, scored.items, scored.answers, name, time.time())
                print(f"answers in FastChat's form: {given}")


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


@evaluation.command("compare")
def compare_reports(
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
    from eval.finished_run import FinishedRun, refuse_unlike

    if benchmark is not None and data is not None:
        config = find_benchmark(benchmark)
        runs = tuple(FinishedRun.read_elsewhere(path, config, data) for path in (a, b))
    else:
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
    from vlm.errors import UserError

    try:
        from eval.harness.lm_eval import run
    except ImportError as error:
        raise UserError(f"lm-eval is missing ({error}): install vlm's extra `eval`") from error

    run(context.args)


def _report_path(path: Path) -> Path:
    from vlm.errors import UserError

    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"--out is {path}, needed: a file that ends in .json")
    return path
