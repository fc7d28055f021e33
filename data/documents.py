"""Parsed files: JSON, JSONL, CSV and tables, as rows that say where they stand."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.schema import RawSample, Reject, Sample
from vlm.errors import UserError
from vlm.images import EXTENSIONS


class Row(NamedTuple):
    """One row of a file, and where it stands: `captions.jsonl:17`."""

    place: str
    value: Any


@dataclass(frozen=True)
class Document:
    """A parsed file, or a folder whose files are rows.

    rows: of JSONL, CSV, a JSON list, a table, or a folder of pictures.
    header: of a file that is one JSON object.
    rejects: rows that could not be parsed.
    """

    path: Path
    rows: list[Row]
    header: dict[str, Any]
    rejects: list[Reject]


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample that can be made: `pictures` are names, `build` raises UserError if it is bad."""

    key: str
    pictures: tuple[str, ...]
    build: Callable[[], Sample]

    def read(self, pictures: "PictureReader") -> RawSample | Reject:
        """The sample with its pictures, or why there is none."""
        try:
            images = [pictures.read(name) for name in self.pictures]
            return RawSample(self.key, self.build(), images)
        except UserError as error:
            return Reject(self.key, str(error))


class PictureReader(Protocol):
    """Whatever has pictures by name; see `data.pictures.Pictures`."""

    def read(self, name: str) -> bytes: ...


def read_document(path: Path) -> Document:
    """Parse a file that ends as one of `SUFFIXES`. Lines of JSONL that are not JSON become rejects.

    Raises:
        UserError: the file as a whole cannot be parsed.
    """
    try:
        return _PARSERS[path.suffix](path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_picture_folder(folder: Path) -> Document | None:
    """A folder of pictures, each with its caption in a .txt of the same name, as rows.

    Sub-folders count. None if there is no picture with a .txt beside it.
    """
    pictures = sorted(_pictures_below(folder))
    if not any(path.with_suffix(".txt").is_file() for path in pictures):
        return None
    rows, rejects = [], []
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        text = path.with_suffix(".txt")
        try:
            caption = text.read_text("utf-8-sig") if text.is_file() else None
        except (UnicodeDecodeError, OSError) as error:
            rejects.append(Reject(name, f"bad text: {text.name} cannot be read: {error}"))
            continue
        rows.append(Row(name, {"image": name, "caption": caption}))
    return Document(folder, rows, {}, rejects)


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is not JSON; says where.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def clean_text(value: Any) -> str:
    """The text without blanks around it; nothing if there is no text."""
    return value.strip() if isinstance(value, str) else ""


def parse_sample(data: dict[str, Any]) -> Sample:
    """A sample out of what a reader put together.

    Raises:
        UserError: it is none; the message begins with `bad sample: `.
    """
    try:
        return Sample.parse(data)
    except UserError as error:
        raise UserError(f"bad sample: {error}") from None


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
SUFFIXES = tuple(_PARSERS)
_PICTURE_SUFFIXES = {f".{extension}" for extension in EXTENSIONS.values()} | {".jpeg", ".tiff"}


def _pictures_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in _PICTURE_SUFFIXES:
            yield path
