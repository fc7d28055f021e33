"""ScienceQA: `problems.json` with its splits, or the hub's tables.

Source: https://github.com/lupantech/ScienceQA, data/scienceqa; its tables are
derek-thomas/ScienceQA and lmms-lab/ScienceQA.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture, is_table
from eval.items import Item, Picture
from vlm.errors import UserError


class ScienceqaOptions(Options):
    """split: of `pid_splits.json`, or of the problems themselves; tables are a split each.

    only_images: leave out questions without a picture (ScienceQA-IMG).
    """

    split: str = "test"
    only_images: bool = False


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; the type is the subject.

    The field `context` is the line `Context: ...`, or nothing where there is no hint. Tables give
    no ids: there it is the row.

    Raises:
        UserError: a row lacks a field, its picture is missing, or there is no such split.
    """
    chosen = read_options(ScienceqaOptions, options)
    if is_table(files, "questions"):
        for number, (_, row) in enumerate(files.rows("questions")):
            pictures = (cell_picture(row, "image"),) if row["image"] is not None else ()
            if pictures or not chosen.only_images:
                yield _item(row, str(number), pictures)
        return
    problems = Row(files.path("questions").name, files.json("questions"))
    for pid in _of_split(files, problems, chosen.split):
        row = Row(f"{problems.where} problem {pid}", problems[pid])
        if row["image"] is None and chosen.only_images:
            continue
        names = (f"{row['split']}/{pid}/{row['image']}", f"{pid}/{row['image']}")
        yield _item(row, pid, (_picture(files, *names),) if row["image"] is not None else ())


def _of_split(files: Files, problems: Row, split: str) -> list[str]:
    """The problems of a split, in its order; where no file lists them, in that of the problems."""
    if not files.has("splits"):
        found = [pid for pid, problem in problems.items() if problem.get("split") == split]
        if not found:
            raise UserError(f"{problems.where} has no problem of the split {split!r}")
        return found
    splits = Row(files.path("splits").name, files.json("splits"))
    if split not in splits:
        raise UserError(f"{splits.where} has no split {split!r}; it has {', '.join(splits)}")
    return list(splits[split])


def _picture(files: Files, *paths: str) -> Picture:
    """A picture by its path: all of them are called `image.png`."""
    return files.picture(*paths, by_path=True)


def _item(row: Row, key: str, pictures: tuple[Picture, ...]) -> Item:
    hint = row["hint"] or ""
    return Item(
        id=key,
        question=row["question"],
        images=pictures,
        choices=tuple(row["choices"]),
        correct=(int(row["answer"]),),
        type=row["subject"],
        fields={"context": f"Context: {hint}\n" if hint else ""},
        facts={
            "subject": row["subject"],
            "grade": row["grade"],
            "hint": hint,
            "has_image": bool(pictures),
        },
    )
