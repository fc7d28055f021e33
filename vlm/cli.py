"""The front door: a table from each command to the module that holds it, loaded when called.

Nothing heavy is imported here, so `vlm --help` answers at once; and since the rooms above this
one are named by strings only, no import runs upward.
"""

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vlm.errors import UserError

# Each room may import those before it, so a command needs every room up to its own.
ROOMS = ("encoders", "projector", "vlm", "data", "eval", "training")


class Command(NamedTuple):
    """Where a command lives: `module` has a typer `app` that holds it under its own name."""

    module: str
    help: str


COMMANDS = {
    "quickstart": Command("training.commands", "The whole story on a CPU, with an HTML report."),
    "shards": Command("training.commands", "Pack, check, show, measure and encode training data."),
    "train": Command("training.commands", "Train a stage: text, encoder, align or finetune."),
    "ask": Command("vlm.commands", "Ask a question about one or more pictures."),
    "caption": Command("vlm.commands", "Describe pictures."),
    "chat": Command("vlm.commands", "Talk with a model about pictures, in the terminal."),
    "serve": Command(
        "vlm.server.commands", "Serve a model over HTTP, in the form of OpenAI's API."
    ),
    "safety": Command("vlm.safety.commands", "Train a small classifier for a content policy."),
    "demo": Command("vlm.demo.commands", "Caption pictures and ask about them in the browser."),
    "eval": Command("eval.commands", "Measure models on benchmarks."),
    "convert": Command(
        "training.commands", "Models from and to transformers; adapters and checkpoints to models."
    ),
    "bench": Command("training.commands", "Measure our speed beside others: load, train and more."),
    "env": Command("vlm.commands", "Print the versions and devices in use."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 is success, 2 a mistake that one line on stderr explains, 130 an interruption (Ctrl-C).
    Any other exception is a bug of ours and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h"):
        print(_help())
        return 0
    if name == "--version":
        import vlm

        print("vlm", vlm.__version__)
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`vlm --help` lists what there is"
        raise UserError(f"vlm has no {kind} {name!r}: {hint}")
    _refuse_namesakes(COMMANDS[name].module)
    return _run_typer(COMMANDS[name].module, arguments)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: vlm COMMAND ...",
            "",
            "Train, evaluate and ask vision-language models of the cross-attention family.",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --version  Print the version.",
            "  --help     Print this; `vlm COMMAND --help` tells more about one command.",
        ]
    )


def _refuse_namesakes(module: str) -> None:
    """Check that the rooms which `module` may import are ours.

    `data`, `eval` and `training` are names that other packages, or a folder beside the script
    that runs, may have taken.

    Raises:
        UserError: Python finds another package of that name first.
    """
    root = Path(__file__).resolve().parent.parent
    for room in ROOMS[: ROOMS.index(module.split(".")[0]) + 1]:
        spec = find_spec(room)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != root / room / "__init__.py":
            where = found.parent if found else "nowhere"
            raise UserError(
                f"Python finds the package {room!r} at {where}, not vlm's own at {root / room}: "
                "install vlm in an environment without the other package, or start it elsewhere"
            )


def _run_typer(module: str, arguments: list[str]) -> int:
    import typer

    app = importlib.import_module(module).app
    # The base class of every complaint about arguments; recent typer versions carry their own
    # copy of click, so that it cannot be imported by one name.
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    app.rich_markup_mode = None  # plain help, alike everywhere; rich takes longer to import
    try:
        group = typer.main.get_group(app)
        result = group.main(args=arguments, prog_name="vlm", standalone_mode=False)
    except usage_error as error:
        complaint: Any = error
        if (
            type(error).__name__ == "NoArgsIsHelpError"
        ):  # `vlm train` alone: the message is the help
            print(complaint.format_message(), file=sys.stderr)
            return 2
        path = complaint.ctx.command_path if complaint.ctx else "vlm"
        message = complaint.format_message().rstrip(".")
        raise UserError(f"{message} (see `{path} --help`)") from error
    except typer.Abort:
        return 1
    return result if isinstance(result, int) else 0
