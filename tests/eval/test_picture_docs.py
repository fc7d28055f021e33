"""docs/picture_benchmarks.md names the benchmarks that there are, and its commands parse."""

import re
import shlex
from pathlib import Path
from typing import Any

import typer
from picture_benchmarks import BENCHMARK_WRITERS

from eval.benchmark import find_benchmark
from eval.commands import DEFAULT, app

PAGE = (Path(__file__).resolve().parents[2] / "docs/picture_benchmarks.md").read_text()


def test_every_benchmark_with_pictures_is_named() -> None:
    assert {name for name in BENCHMARK_WRITERS if f"`{name}`" not in PAGE} == set()


def test_every_command_parses_and_every_setting_is_one() -> None:
    lines = re.findall(r"^vlm (eval .*)$", PAGE, re.MULTILINE)
    evaluation: Any = typer.main.get_command(app)
    commands = evaluation.commands["eval"].commands
    for line in lines:
        first, *rest = shlex.split(line)[1:]
        name, rest = (first, rest) if first in commands else (DEFAULT, [first, *rest])
        with commands[name].make_context(name, rest) as context:
            named = context.params.get("benchmark") or [context.params["name"]]
            find_benchmark(named[0], tuple(context.params["overrides"] or ()))
    assert len(lines) == 6
