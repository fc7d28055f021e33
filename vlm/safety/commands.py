"""`vlm safety`: a text classifier from labelled examples."""

import json
import random
from pathlib import Path
from typing import Annotated

import typer

from vlm.errors import UserError

app = typer.Typer(add_completion=False)
safety = typer.Typer(no_args_is_help=True, help="Classifiers for a content policy.")
app.add_typer(safety, name="safety")


@safety.callback()
def _group() -> None:
    """Classifiers for a content policy (docs/serving.md)."""


@safety.command()
def train(
    examples: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help='A line each: {"text": "...", "categories": ["threat"]}.'
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The classifier, .safetensors.")],
    hold_out: Annotated[
        float, typer.Option(min=0.05, max=0.9, help="The share kept for measuring.")
    ] = 0.2,
) -> None:
    """Train a small text classifier and print how it does on held-out examples."""
    from vlm.safety.classifier import Content
    from vlm.safety.ngrams import NgramClassifier

    rows = _read(examples)
    random.Random(0).shuffle(rows)
    num_held = max(1, round(hold_out * len(rows)))
    held, kept = rows[:num_held], rows[num_held:]
    measured = NgramClassifier.train([text for text, _ in kept], [found for _, found in kept])
    print(f"{len(kept)} examples, and {len(held)} held out:")
    scores = [measured.classify(Content(text)) for text, _ in held]
    for category in measured.categories:
        said = [score[category] >= 0.5 for score in scores]
        true = [category in found for _, found in held]
        hits = sum(s and t for s, t in zip(said, true, strict=True))
        print(f"{category}: precision {hits}/{sum(said)}, recall {hits}/{sum(true)}")
    NgramClassifier.train([text for text, _ in rows], [found for _, found in rows]).save(out)
    print(f"{out}, trained on all of them")


def _read(path: Path) -> list[tuple[str, list[str]]]:
    """The examples of a JSONL file.

    Raises:
        UserError: it cannot be read, or a line is no example.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            match json.loads(line):
                case {"text": str(text), "categories": [*names]} if all(
                    isinstance(name, str) for name in names
                ):
                    rows.append((text, names))
                case _:
                    raise ValueError("not of that form")
        except ValueError as error:
            raise UserError(
                f'{path}, line {number}: needed is {{"text": "...", "categories": ["...", ...]}}, '
                f"the list empty where nothing is wrong ({error})"
            ) from error
    if len(rows) < 10:
        raise UserError(f"{path} has {len(rows)} examples, needed: at least 10")
    return rows
