"""The front door: instant help, one-line mistakes, exit codes."""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from vlm import cli
from vlm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "open_clip", "timm", "webdataset", "accelerate", "torchvision")


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def fake_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command `try` whose argument says how it ends, in place of a real room's."""
    app = typer.Typer()

    @app.command("try")
    def try_(ending: str, times: int = 1) -> None:
        match ending:
            case "mistake":
                raise UserError("two\nlines")
            case "interrupt":
                raise KeyboardInterrupt
            case "abort":
                raise typer.Abort
            case "three":
                raise typer.Exit(3)
            case "bug":
                raise ZeroDivisionError

    @app.command()
    def other() -> None:
        """A second one, so that the app is a group."""

    monkeypatch.setitem(sys.modules, "vlm.fake", SimpleNamespace(app=app))  # type: ignore[misc]
    monkeypatch.setitem(cli.COMMANDS, "try", cli.Command("vlm.fake", "Try."))


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == cli.main([]) == cli.main(["-h"]) == 0
    output = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in output and command.help in output


def test_help_answers_within_half_a_second() -> None:
    seconds = []
    for _ in range(3):  # the best of three: another process may be using the processor
        start = time.perf_counter()
        assert run_python("-m", "vlm", "--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_every_command_of_the_table_exists_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, typer; from importlib import import_module; from vlm.cli import COMMANDS\n"
        "for name, command in COMMANDS.items():\n"
        "    group = typer.main.get_group(import_module(command.module).app)\n"
        "    assert name in group.commands, (name, command.module, list(group.commands))\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"vlm {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: vlm has no command 'trian': did you mean 'train'?"),
        (["xyz"], "error: vlm has no command 'xyz': `vlm --help` lists what there is"),
        (["--loud"], "error: vlm has no option '--loud': `vlm --help` lists what there is"),
        (["try", "mistake"], "error: two lines"),
        (["try", "mistake", "--time", "2"], "--time"),
        (["try", "x", "--times", "two"], "--times"),
        (["try", "x", "--times", "two"], "(see `vlm try --help`)"),
        (["try"], "issing argument"),
    ],
)
@pytest.mark.usefixtures("fake_room")
def test_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert message in output.err


@pytest.mark.parametrize(
    ("ending", "code"), [("well", 0), ("three", 3), ("interrupt", 130), ("abort", 1)]
)
@pytest.mark.usefixtures("fake_room")
def test_exit_code_says_how_a_command_ended(
    ending: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["try", ending]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_command_that_needs_a_subcommand_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Usage: vlm train") and "finetune" in error and "error:" not in error


def test_interruption_while_a_command_loads_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    assert cli.main(["env"]) == 130


@pytest.mark.usefixtures("fake_room")
def test_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["try", "bug"])


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlm {importlib.import_module('vlm').__version__}\n"


def test_another_package_of_a_rooms_name_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("")
    done = run_python("-m", "vlm", "shards", "--help", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Python finds the package 'data' at ")
    assert done.stderr.count("\n") == 1
    # A command that does not need the room is not held up by it, nor is a plain folder a package.
    assert run_python("-m", "vlm", "env", "--help", cwd=tmp_path).returncode == 0
    (tmp_path / "data" / "__init__.py").unlink()
    assert run_python("-m", "vlm", "shards", "--help", cwd=tmp_path).returncode == 0


def test_importing_vlm_is_light_and_lists_its_names() -> None:
    program = (
        "import sys, vlm; assert 'load' in dir(vlm)\n"
        f"heavy = [name for name in (*{HEAVY}, 'pydantic', 'yaml') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "try: vlm.loud\n"
        "except AttributeError as error: assert 'loud' in str(error)\n"
        "else: raise AssertionError\n"
    )
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
