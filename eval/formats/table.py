"""Which formats there are, by the name that a benchmark's configuration uses."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats import shards
from eval.items import Item
from vlm.errors import UserError

# From a benchmark's files and the reader's options to items, in the order of the files.
Reader = Callable[[Files, Mapping[str, Any]], Iterator[Item]]

FORMATS: dict[str, Reader] = {
    "shards": shards.read,
}


def find_reader(name: str) -> Reader:
    """Return a reader by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
