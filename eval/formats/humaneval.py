"""HumanEval: Python functions to complete from their heads, with tests."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import PositiveInt

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import Item

COLUMNS = ("prompt", "test", "entry_point")


class HumanevalOptions(Options):
    """samples: how often each problem is answered."""

    samples: PositiveInt = 1


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the problems, each as often as it is answered, as one group.

    The question is the code so far: imports, the function's head, and its docstring.
    """
    num_samples = read_options(HumanevalOptions, options).samples
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
