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
    "aokvqa": "eval.formats.aokvqa:read",
    "captions": "eval.formats.captions:read",
    "chartqa": "eval.formats.chartqa:read",
    "classes": "eval.formats.classes:read",
    "doc_vqa": "eval.formats.doc_vqa:read",
    "easy_vqa": "eval.formats.easy_vqa:read",
    "gqa": "eval.formats.gqa:read",
    "mmbench": "eval.formats.mmbench:read",
    "mme": "eval.formats.mme:read",
    "mmmu": "eval.formats.mmmu:read",
    "nlvr": "eval.formats.nlvr:read",
    "pope": "eval.formats.pope:read",
    "scienceqa": "eval.formats.scienceqa:read",
    "shapes": "eval.formats.shapes:read",
    "sugarcrepe": "eval.formats.sugarcrepe:read",
    "text_vqa": "eval.formats.text_vqa:read",
    "vqa": "eval.formats.vqa:read",
    "vsr": "eval.formats.vsr:read",
    "shards": "eval.formats.shards:read",
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
