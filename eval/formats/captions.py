"""Captions of COCO, NoCaps, Flickr8k and Flickr30k, in the layouts they are published in.

- COCO and NoCaps: one object with `images` and `annotations` (https://cocodataset.org,
  https://nocaps.org).
- Karpathy's splits: one object with `images` that have `sentences` and a `split`
  (https://cs.stanford.edu/people/karpathy/deepimagesent).
- Flickr8k and 30k: lines of `PICTURE#number<tab>caption`; a list of the pictures of a split.
- Rows with `image` and `captions`; the hub's tables, CSV for Flickr30k.
"""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.files import Files, Row, read_text
from eval.formats.options import Options, read_options
from eval.formats.pictures import coco_names, row_picture
from eval.items import Item, Picture
from vlm.errors import UserError

OLD_SUBSETS = ("val2014", "train2014")


class CaptionsOptions(Options):
    """split: only the pictures of it; where lines name none, the file `splits` lists them.

    only_with_objects: leave out rows whose objects are not annotated.
    """

    split: str | None = None
    only_with_objects: bool = False


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the pictures, with all captions as answers.

    The type is NoCaps' domain. The fact `objects` is the names of what is annotated, where rows or
    the file `instances` have them.

    Raises:
        UserError: a file is of no known layout, or a picture is missing.
    """
    chosen = read_options(CaptionsOptions, options)
    path = files.paths("captions")[0]
    if path.name.removesuffix(".gz").endswith((".jsonl", ".parquet", ".csv")):
        yield from _from_rows(files, chosen)
    elif path.name.removesuffix(".gz").endswith((".token", ".txt")):
        if chosen.split is not None:
            files.path("splits")
        yield from _from_tokens(files)
    else:
        content = Row(path.name, files.json("captions"))
        if content["images"] and "sentences" in content["images"][0]:
            yield from _karpathy(files, content, chosen)
        else:
            yield from _coco(files, content, chosen)


def _coco(files: Files, content: Row, options: CaptionsOptions) -> Iterator[Item]:
    if options.split is not None:
        raise UserError(f"options.split is {options.split!r}, and {content.where} names no splits")
    if options.only_with_objects:
        files.path("instances")  # where nothing is listed, there is nothing
    captions: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    objects = _instances(files)
    for values in content["images"]:
        image = Row(f"{content.where} image {values.get('id')}", values)
        facts = {"objects": objects.get(image["id"], ())} if files.has("instances") else {}
        names = [image["file_name"]]
        if isinstance(image["id"], int) and "domain" not in image:
            names += coco_names(image["id"], *OLD_SUBSETS)
        kind = image.get("domain", "all")
        picture = files.picture(*names)
        yield _item(str(image["id"]), picture, captions.get(image["id"], ()), kind, facts)


def _instances(files: Files) -> dict[int, tuple[str, ...]]:
    """The names of what is annotated in each picture, in alphabetical order."""
    if not files.has("instances"):
        return {}
    content = Row(files.path("instances").name, files.json("instances"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[int, set[str]] = {}
    for annotation in content["annotations"]:
        found.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    return {image: tuple(sorted(objects)) for image, objects in found.items()}


def _karpathy(files: Files, content: Row, options: CaptionsOptions) -> Iterator[Item]:
    for number, values in enumerate(content["images"]):
        image = Row(f"{content.where} image {number}", values)
        if options.split in (None, image["split"]):
            key = str(image.get("cocoid", image["filename"]))
            names = [image["filename"]]
            if "cocoid" in image:
                names += coco_names(image["cocoid"])
            captions = [sentence["raw"] for sentence in image["sentences"]]
            yield _item(key, files.picture(*names), captions)


def _from_tokens(files: Files) -> Iterator[Item]:
    captions: dict[str, list[str]] = {}
    for path in files.paths("captions"):
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            name, tab, caption = line.partition("\t")
            picture, mark, _ = name.rpartition("#")
            if not line.strip():
                continue
            if not tab or not mark:
                raise UserError(f"{path.name}:{number} is no PICTURE#number, tab and caption")
            captions.setdefault(picture, []).append(caption.strip())
    wanted = list(captions)
    if files.has("splits"):
        wanted = [line.strip() for line in files.text("splits").splitlines() if line.strip()]
    for picture in wanted:
        if picture not in captions:
            raise UserError(f"{files.path('splits').name} lists {picture!r}, which has no caption")
        yield _item(picture, files.picture(picture), captions[picture])


def _from_rows(files: Files, options: CaptionsOptions) -> Iterator[Item]:
    for _, row in files.rows("captions"):
        if options.split is not None and options.split != row.get("split", options.split):
            continue
        name = _name(row)
        key = str(row["image_id"]) if "image_id" in row else name
        annotated = row.get("objects") is not None
        if options.only_with_objects and not annotated:
            continue
        facts = {"objects": tuple(row["objects"])} if annotated else {}
        kind = row.get("domain") or "all"
        yield _item(key, row_picture(files, row, name), _captions(row), kind, facts)


def _name(row: Row) -> str:
    """What a row calls its picture."""
    for column in ("image", "image_file_name", "filename", "file_name", "question_id"):
        if isinstance(row.get(column), str):
            return str(row[column])
    raise UserError(f"{row.where} names no picture; it has {', '.join(row)}")


def _captions(row: Row) -> tuple[str, ...]:
    """A row's captions; CSV has them as JSON, or as Python writes a list."""
    for column in ("captions", "annotations_captions", "caption", "raw", "answer"):
        found = row.get(column)
        if isinstance(found, str) and found.startswith("["):
            try:
                found = json.loads(found)
            except ValueError:
                found = ast.literal_eval(found)
        if found and not isinstance(found, Picture):
            return (found,) if isinstance(found, str) else tuple(found)
    raise UserError(f"{row.where} has no captions; it has {', '.join(row)}")


def _item(
    key: str,
    picture: Picture,
    captions: Sequence[str],
    kind: str = "all",
    facts: Mapping[str, Any] | None = None,
) -> Item:
    if not captions:
        raise UserError(f"picture {picture.name} has no caption")
    return Item(
        id=key,
        question="",
        images=(picture,),
        answers=tuple(caption.strip() for caption in captions),
        type=kind,
        facts=facts or {},
    )
