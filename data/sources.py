"""Data sets as they are found: which format a file has, and its samples one by one."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.conversations import read_cauldron, read_chat, read_llava
from data.documents import SUFFIXES, Document, Entry, read_document, read_picture_folder
from data.pictures import Pictures, find_pictures
from data.readers import (
    Question,
    make_entries,
    read_captions,
    read_coco,
    read_easy_vqa,
    read_questions,
    read_vqa2,
)
from data.schema import RawSample, Reject
from data.tables import SUFFIXES as TABLE_SUFFIXES
from data.tables import PictureTable, TableFile, find_tables, read_tables
from vlm.errors import UserError

LISTINGS = ("captions.jsonl", "captions.csv")


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
    stamps: names and sizes of its files.
    """

    format: str
    entries: list[Entry]
    rejects: list[Reject]
    pictures: Pictures
    stamps: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.entries) + len(self.rejects)

    @property
    def items(self) -> list[Entry | Reject]:
        """The rejects, then the samples that can be made, in the order of the file."""
        return [*self.rejects, *self.entries]

    @property
    def fingerprint(self) -> str:
        """Tells whether an unfinished pack read the same: files, samples, pictures' names."""
        digest = hashlib.sha256(repr((self.format, self.stamps, len(self.rejects))).encode())
        for entry in self.entries:
            digest.update(repr((entry.key, entry.pictures)).encode())
        return digest.hexdigest()

    def read(self) -> Iterator[RawSample | Reject]:
        """Yield the rejects, then the samples in the order of the file with their pictures."""
        for item in self.items:
            yield item if isinstance(item, Reject) else item.read(self.pictures)

    def first(self, num_samples: int) -> "Source":
        """The first `num_samples` entries."""
        return replace(self, entries=self.entries[:num_samples])


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
    document, tables = _read(source)
    name = format_name or _recognise(document)
    if split is not None:
        document = _keep_split(document, split)
    elif len(splits := {file.split for file in tables}) > 1:
        known = ", ".join(sorted(str(name) for name in splits))
        raise UserError(f"{source} holds the splits {known}: choose one with --split NAME")
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
    pictures = find_pictures(document.path, images)
    if tables:
        table = PictureTable(source, tables, pictures.places)
        pictures = Pictures([table, *pictures.places])
    files = [file.path for file in tables] or [document.path]
    stamps = tuple(f"{file.name} {file.stat().st_size}" for file in files)
    return Source(name, kept, rejects, pictures, stamps)


def find_file(source: Path) -> Path:
    """The file that describes a data set: `source` itself, or the one in that folder.

    Raises:
        UserError: there is none, or several.
    """
    if source.is_file():
        if source.suffix not in SUFFIXES:
            endings = ", ".join((*SUFFIXES, *TABLE_SUFFIXES))
            raise UserError(f"{source} must end in {endings}; {_format_list()}")
        return source
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a file or a folder; {_format_list()}")
    for name in LISTINGS:
        if (source / name).is_file():
            return source / name
    found = [path for path in sorted(source.iterdir()) if path.suffix in SUFFIXES]
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
        raise UserError(
            f"{source} must hold one JSON, JSONL or CSV file, parquet files, or pictures with a "
            f".txt beside each, but {hint}"
        )
    return found[0]


def _read(source: Path) -> tuple[Document, list[TableFile]]:
    """What a source holds, and the files of the table if it is one."""
    listing = [source / name for name in LISTINGS if (source / name).is_file()]
    tables = [] if listing else find_tables(source)
    if tables:
        return read_tables(source, tables), tables
    if source.is_dir() and not any(path.suffix in SUFFIXES for path in source.iterdir()):
        folder = read_picture_folder(source)
        if folder is not None:
            return folder, []
    return read_document(find_file(source)), []


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
    "cauldron": ChatFormat(
        "The Cauldron's rows with images and texts of user and assistant",
        lambda d: _has_fields(d, ("images",), ("texts",)),
        read_cauldron,
    ),
    "questions": QuestionFormat(
        "JSONL, CSV or tables with image, question, answer or answers",
        lambda d: _has_fields(
            d,
            ("image", "file_name"),
            ("question",),
            ("answer", "answers", "multiple_choice_answer"),
        ),
        read_questions,
        grouped=False,
    ),
    "easy-vqa": QuestionFormat(
        "JSON list of [question, answer, image id]", _is_easy_vqa, read_easy_vqa, grouped=False
    ),
}
