"""Which formats there are, by the name that a benchmark's configuration uses."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from eval.files import Files
from eval.items import Item
from vlm.errors import UserError

# From a benchmark's files and the reader's options to items, in the order of the files.
Reader = Callable[[Files, Mapping[str, Any]], Iterator[Item]]

FORMATS = {
    "bbq": "eval.formats.bbq:read",
    "crows_pairs": "eval.formats.crows_pairs:read",
    "gsm8k": "eval.formats.gsm8k:read",
    "humaneval": "eval.formats.humaneval:read",
    "mmlu": "eval.formats.mmlu:read",
    "mt_bench": "eval.formats.mt_bench:read",
    "shards": "eval.formats.shards:read",
    "text": "eval.formats.text:read",
    "truthfulqa": "eval.formats.truthfulqa:read",
    "wikitext": "eval.formats.wikitext:read",
}


def find_reader(name: str) -> Reader:
    """Return a reader by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    module, _, function = FORMATS[name].partition(":")
    reader: Reader = getattr(import_module(module), function)
    return reader


def check_options(name: str, options: Mapping[str, Any], *known: str) -> None:
    """Refuse options that a format has not.

    Raises:
        UserError: names the first of them and those that there are.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        have = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"format {name} has no option {unknown[0]!r}; {have}")
