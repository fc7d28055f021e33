"""Data sets as they are found: which format a file has, and its samples one by one."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.pictures import Pictures, find_pictures
from data.readers import (
    Document,
    Entry,
    Question,
    Row,
    load_json,
    make_entries,
    read_captions,
    read_chat,
    read_coco,
    read_easy_vqa,
    read_llava,
    read_vqa2,
)
from data.schema import RawSample, Reject
from vlm.errors import UserError


@dataclass(frozen=True)
class QuestionFormat:
    """A format that lists questions or captions. grouped: always all of a picture together."""

    description: str
    recognise: Callable[[Document], bool]
    read: Callable[[Document], Iterator[Question | Reject]]
    grouped: bool


@dataclass(frozen=True)
class ChatFormat:
    """A format that lists whole conversations."""

    description: str
    recognise: Callable[[Document], bool]
    read: Callable[[Document], Iterator[Entry | Reject]]


@dataclass(frozen=True)
class Source:
    """A data set on disk.

    format: one of `FORMATS`.
    rejects: what its files list but cannot be used.
    """

    format: str
    entries: list[Entry]
    rejects: list[Reject]
    pictures: Pictures

    def __len__(self) -> int:
        return len(self.entries) + len(self.rejects)

    def read(self) -> Iterator[RawSample | Reject]:
        """Yield the rejects, then the samples in the order of the file with their pictures."""
        yield from self.rejects
        for entry in self.entries:
            try:
                images = [self.pictures.read(name) for name in entry.pictures]
                yield RawSample(entry.key, entry.build(), images)
            except UserError as error:
                yield Reject(entry.key, str(error))

    def first(self, num_samples: int) -> "Source":
        """The first `num_samples` entries."""
        return replace(self, entries=self.entries[:num_samples])

    def hold_out_last(self, num_pictures: int) -> tuple["Source", "Source"]:
        """Split by picture into what stays and what the last `num_pictures` pictures show.

        The last by name, numbers in it by value. A sample of several pictures is held out if any
        of its pictures is, so no held-out picture is in the part that stays.

        Raises:
            UserError: there are not more pictures than that.
        """
        names = sorted({name for entry in self.entries for name in entry.pictures}, key=_natural)
        if not 0 < num_pictures < len(names):
            raise UserError(
                f"--hold-out-last must be from 1 to {len(names) - 1}, not {num_pictures}: the "
                f"source has {len(names)} pictures"
            )
        last = set(names[-num_pictures:])
        held = [not last.isdisjoint(entry.pictures) for entry in self.entries]
        stay = [entry for entry, is_held in zip(self.entries, held, strict=True) if not is_held]
        held_out = [entry for entry, is_held in zip(self.entries, held, strict=True) if is_held]
        return replace(self, entries=stay), replace(self, entries=held_out, rejects=[])


def open_source(
    source: Path,
    format_name: str | None = None,
    images: Path | None = None,
    split: str | None = None,
    group_by_image: bool = False,
) -> Source:
    """Find out what `source` holds and list its samples; pictures are not read yet.

    Args:
        source: a file, or a folder that holds one.
        format_name: one of `FORMATS`; None tells it from the file's content.
        images: see `data.pictures.find_pictures`.
        split: keep rows whose field `split` has this value.
        group_by_image: put all questions about a picture into one sample.
    Raises:
        UserError: nothing there can be read; lists the formats.
    """
    if format_name is not None and format_name not in FORMATS:
        raise UserError(f"no format {format_name!r}: {_format_list()}")
    document = read_document(find_file(source))
    name = format_name or _recognise(document)
    if split is not None:
        document = _keep_split(document, split)
    chosen = FORMATS[name]
    try:
        items: list[Any] = list(chosen.read(document))
    except (KeyError, TypeError, AttributeError) as error:
        # A file given as --format X that is built otherwise.
        raise UserError(
            f"{document.path} is not {name} ({type(error).__name__}: {error}): {_format_list()}"
        ) from error
    rejects = document.rejects + [item for item in items if isinstance(item, Reject)]
    kept = [item for item in items if not isinstance(item, Reject)]
    if isinstance(chosen, QuestionFormat):
        kept = make_entries(kept, group_by_image or chosen.grouped, name)
    elif group_by_image:
        raise UserError(f"--group-by-image is for questions; {document.path} holds chats ({name})")
    return Source(name, kept, rejects, find_pictures(document.path, images))


def find_file(source: Path) -> Path:
    """The file that describes a data set: `source` itself, or the one in that folder.

    Raises:
        UserError: there is none, or several.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a file or a folder; {_format_list()}")
    for name in ("captions.jsonl", "captions.csv"):
        if (source / name).is_file():
            return source / name
    found = [path for path in sorted(source.iterdir()) if path.suffix in _PARSERS]
    questions = [path for path in found if "questions" in path.name]
    if len(found) == 2 and len(questions) == 1 and "annotations" in "".join(p.name for p in found):
        return questions[0]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found)
        hint = (
            f"there are {listed}: give the one you mean"
            if found
            else f"there is none; {_format_list()}"
        )
        raise UserError(f"{source} must hold one JSON, JSONL or CSV file, but {hint}")
    return found[0]


def read_document(path: Path) -> Document:
    """Parse a file. Lines of JSONL that are not JSON become rejects.

    Raises:
        UserError: the file as a whole cannot be parsed.
    """
    if path.suffix not in _PARSERS:
        raise UserError(f"{path} must end in {', '.join(_PARSERS)}; {_format_list()}")
    try:
        return _PARSERS[path.suffix](path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _parse_jsonl(path: Path) -> Document:
    rows, rejects = [], []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path.name}:{number}"
            try:
                if line.strip():
                    rows.append(Row(place, json.loads(line)))
            except (ValueError, RecursionError) as error:
                rejects.append(Reject(place, f"bad JSON: {error}"))
    return Document(path, rows, {}, rejects)


def _parse_csv(path: Path) -> Document:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        rows = [Row(f"{path.name}:{reader.line_num}", row) for row in reader]
    return Document(path, rows, {}, [])


def _parse_json(path: Path) -> Document:
    content = load_json(path)
    if isinstance(content, dict):
        return Document(path, [], content, [])
    listed = content if isinstance(content, list) else []
    rows = [Row(f"{path.name} item {index}", value) for index, value in enumerate(listed)]
    return Document(path, rows, {}, [])


_PARSERS = {".jsonl": _parse_jsonl, ".csv": _parse_csv, ".json": _parse_json}


def _keep_split(document: Document, split: str) -> Document:
    splits = {row.value.get("split") for row in document.rows if isinstance(row.value, dict)}
    if split not in splits:
        known = ", ".join(sorted(str(name) for name in splits if name)) or "none"
        raise UserError(f"{document.path} has no rows with split {split!r}; its splits: {known}")
    kept = [
        row
        for row in document.rows
        if isinstance(row.value, dict) and row.value.get("split") == split
    ]
    return replace(document, rows=kept)


def _recognise(document: Document) -> str:
    for name, candidate in FORMATS.items():
        if candidate.recognise(document):
            return name
    raise UserError(f"cannot tell what {document.path} holds; {_format_list()}")


def _has_fields(document: Document, *alternatives: tuple[str, ...]) -> bool:
    """Whether one of the first rows has a field out of each of the alternatives."""
    heads = [row.value for row in document.rows[:20] if isinstance(row.value, dict)]
    return any(all(any(name in head for name in names) for names in alternatives) for head in heads)


def _is_easy_vqa(document: Document) -> bool:
    heads = [row.value for row in document.rows[:20]]
    return any(isinstance(head, list) and len(head) == 3 for head in heads)


def _lists(document: Document, field: str, item_field: str) -> bool:
    listed = document.header.get(field)
    if not isinstance(listed, list) or not listed:
        return False
    return isinstance(listed[0], dict) and item_field in listed[0]


def _natural(name: str) -> list[str | int]:
    # Words and numbers alternate, so that a number is only ever compared with a number.
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", name))]


def _format_list() -> str:
    listed = "; ".join(f"{name} ({form.description})" for name, form in FORMATS.items())
    return f"--format is one of: {listed}"


FORMATS: dict[str, QuestionFormat | ChatFormat] = {
    "captions": QuestionFormat(
        "JSONL or CSV with image or file_name, caption or captions",
        lambda d: _has_fields(d, ("image", "file_name"), ("caption", "captions")),
        read_captions,
        grouped=True,
    ),
    "chat": ChatFormat(
        "JSONL with messages and images", lambda d: _has_fields(d, ("messages",)), read_chat
    ),
    "coco": QuestionFormat(
        "COCO captions JSON with images and annotations",
        lambda d: "images" in d.header and _lists(d, "annotations", "caption"),
        read_coco,
        grouped=True,
    ),
    "vqa2": QuestionFormat(
        "VQA v2 questions JSON, its annotations JSON beside it",
        lambda d: _lists(d, "questions", "question_id") or _lists(d, "annotations", "question_id"),
        read_vqa2,
        grouped=False,
    ),
    "llava": ChatFormat(
        "LLaVA instruct JSON with conversations",
        lambda d: _has_fields(d, ("conversations",)),
        read_llava,
    ),
    "easy-vqa": QuestionFormat(
        "JSON list of [question, answer, image id]", _is_easy_vqa, read_easy_vqa, grouped=False
    ),
}
