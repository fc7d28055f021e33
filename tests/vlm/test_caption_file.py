"""A file of captions is the state of its making, wherever that is killed."""

import csv
import json
from pathlib import Path

import pytest

from vlm.caption_file import CaptionFile
from vlm.errors import UserError

ROWS = [("a.png", "two red"), ('odd "name",\n.png', "größer, ja"), ("c/d.png", "")]


def written(path: Path) -> bytes:
    with CaptionFile(path) as file:
        file.add(ROWS[:1])
        file.add(ROWS[1:])
    return path.read_bytes()


def read(path: Path) -> list[tuple[str, str]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["image", "caption"]
        return [(name, caption) for name, caption in rows]
    return [
        (row["image"], row["caption"]) for row in map(json.loads, path.read_text().splitlines())
    ]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_rows_come_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    written(path)
    assert read(path) == ROWS
    with CaptionFile(path) as again:
        assert again.names == {row[0] for row in ROWS}


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_cut_off_anywhere_it_keeps_whole_lines_and_can_be_completed(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    whole = written(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with CaptionFile(path) as file:
            kept = len(file.names)
            assert file.names == {row[0] for row in ROWS[:kept]}
            file.add(ROWS[kept:])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.jsonl", "notes"),
        ("out.jsonl", "notes\n"),
        ("out.jsonl", '{"image": "a.png", "caption": "b"}\nnotes'),
        ("out.jsonl", '{"image": "a.png", "caption": 1}\n'),
        ("out.jsonl", '{"image": "a.png", "caption": "b", "score": 1}\n'),
        ("out.csv", "notes"),
        ("out.csv", "picture,caption\n"),
        ("out.csv", "image,caption\na.png\n"),
        ("out.txt", ""),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=name):
        CaptionFile(path)
    assert path.read_text() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out\.csv cannot be written"):
        CaptionFile(tmp_path / "file" / "out.csv")
