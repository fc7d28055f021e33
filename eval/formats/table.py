"""Which formats there are, by the name that a benchmark's configuration uses."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats import (
    aokvqa,
    captions,
    chartqa,
    classes,
    doc_vqa,
    easy_vqa,
    gqa,
    mm_vet,
    mmbench,
    mme,
    mmmu,
    nlvr,
    pope,
    scienceqa,
    shapes,
    shards,
    sugarcrepe,
    text_vqa,
    vqa,
    vsr,
)
from eval.items import Item
from vlm.errors import UserError

# From a benchmark's files and the reader's options to items, in the order of the files.
Reader = Callable[[Files, Mapping[str, Any]], Iterator[Item]]

FORMATS: dict[str, Reader] = {
    "aokvqa": aokvqa.read,
    "captions": captions.read,
    "chartqa": chartqa.read,
    "classes": classes.read,
    "doc_vqa": doc_vqa.read,
    "easy_vqa": easy_vqa.read,
    "gqa": gqa.read,
    "mm_vet": mm_vet.read,
    "mmbench": mmbench.read,
    "mme": mme.read,
    "mmmu": mmmu.read,
    "nlvr": nlvr.read,
    "pope": pope.read,
    "scienceqa": scienceqa.read,
    "shapes": shapes.read,
    "shards": shards.read,
    "sugarcrepe": sugarcrepe.read,
    "text_vqa": text_vqa.read,
    "vqa": vqa.read,
    "vsr": vsr.read,
}


def find_reader(name: str) -> Reader:
    """Return a reader by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
