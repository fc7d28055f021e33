"""Which formats there are, by the name that a benchmark's configuration uses."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats import (
    aokvqa,
    bbq,
    captions,
    chartqa,
    classes,
    crows_pairs,
    doc_vqa,
    easy_vqa,
    gqa,
    gsm8k,
    humaneval,
    mm_vet,
    mmbench,
    mme,
    mmlu,
    mmmu,
    mt_bench,
    nlvr,
    pope,
    scienceqa,
    shapes,
    shards,
    sugarcrepe,
    text,
    text_vqa,
    truthfulqa,
    vqa,
    vsr,
    wikitext,
)
from eval.items import Item
from vlm.errors import UserError

# From a benchmark's files and the reader's options to items, in the order of the files.
Reader = Callable[[Files, Mapping[str, Any]], Iterator[Item]]

FORMATS: dict[str, Reader] = {
    "aokvqa": aokvqa.read,
    "bbq": bbq.read,
    "captions": captions.read,
    "chartqa": chartqa.read,
    "classes": classes.read,
    "crows_pairs": crows_pairs.read,
    "doc_vqa": doc_vqa.read,
    "easy_vqa": easy_vqa.read,
    "gqa": gqa.read,
    "gsm8k": gsm8k.read,
    "humaneval": humaneval.read,
    "mm_vet": mm_vet.read,
    "mmbench": mmbench.read,
    "mme": mme.read,
    "mmlu": mmlu.read,
    "mmmu": mmmu.read,
    "mt_bench": mt_bench.read,
    "nlvr": nlvr.read,
    "pope": pope.read,
    "scienceqa": scienceqa.read,
    "shapes": shapes.read,
    "shards": shards.read,
    "sugarcrepe": sugarcrepe.read,
    "text": text.read,
    "text_vqa": text_vqa.read,
    "truthfulqa": truthfulqa.read,
    "vqa": vqa.read,
    "vsr": vsr.read,
    "wikitext": wikitext.read,
}


def find_reader(name: str) -> Reader:
    """Return a reader by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
