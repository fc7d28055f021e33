"""HumanEval: Python functions to complete from their heads, with tests."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from eval.files import Files
from eval.formats.table import check_options
from eval.items import Item
from vlm.errors import UserError

COLUMNS = ("prompt", "test", "entry_point")


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the problems; with the option `samples: N`, each N times, as one group.

    The question is the code so far: imports, the function's head, and its docstring.
    """
    check_options("humaneval", options, "samples")
    num_samples = options.get("samples", 1)
    if not isinstance(num_samples, int) or num_samples < 1:
        raise UserError(f"format humaneval: samples is {num_samples!r}, needed: an integer above 0")
    for _, row in files.rows("questions"):
        item = Item(
            id=row["task_id"],
            question=row["prompt"],
            answers=(row["canonical_solution"],),
            facts={column: row[column] for column in COLUMNS},
        )
        yield from samples_of(item, num_samples)


def samples_of(item: Item, num_samples: int) -> Iterator[Item]:
    """The item as often as it is answered: `ID`, `ID+1`, ..., all in one group."""
    for number in range(num_samples):
        name = item.id if number == 0 else f"{item.id}+{number}"
        yield replace(item, id=name, group=item.id)
