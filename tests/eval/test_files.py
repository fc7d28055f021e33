import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from eval.files import Files
from vlm.errors import UserError


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no q\.json \(questions\), which x needs\. See page"):
        Files(tmp_path, {"questions": "q.json"}, get="See page", name="x")
    with pytest.raises(UserError, match="is no folder"):
        Files(tmp_path / "nowhere", {})
    assert not Files(tmp_path, {"extra": "e.json"}, optional=("extra",)).has("extra")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_rows_come_from_lines_and_lists_packed_or_not(name: str, tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2}]
    text = json.dumps(rows) if ".jsonl" not in name else "\n".join(map(json.dumps, rows)) + "\n"
    content = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
    (tmp_path / name).write_bytes(content)
    found = list(Files(tmp_path, {"rows": "rows*"}).rows("rows"))
    assert found == [(f"{name}:1", {"a": 1}), (f"{name}:2", {"a": 2})]


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(UserError, match=r"r\.jsonl:2 is no JSON"):
        list(Files(tmp_path, {"rows": "r.jsonl"}).rows("rows"))
    (tmp_path / "r.jsonl").write_text("3\n")
    with pytest.raises(UserError, match=r"r\.jsonl:1 is a int, needed: an object"):
        list(Files(tmp_path, {"rows": "r.jsonl"}).rows("rows"))


def test_a_name_that_several_pictures_have_finds_none_of_them(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    files = Files(tmp_path, {"images": "images"})
    assert files.picture("a/1.jpg").read() == b"a/1.jpg"
    assert files.picture("2.jpg").read() == b"b/2.jpg"
    with pytest.raises(UserError, match=r"has no picture '1\.jpg'"):
        files.picture("1.jpg")


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip"])
def test_pictures_are_found_by_name_and_by_path(kind: str, tmp_path: Path) -> None:
    contents = {"val/1.jpg": b"one", "val/2.png": b"two", "val/notes.txt": b"no"}
    if kind == "folder":
        for name, content in contents.items():
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        mode = "w" if kind == "tar" else "w:gz"
        with tarfile.open(tmp_path / f"images.{kind}", mode) as tar:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    files = Files(tmp_path, {"images": "images*"})
    assert files.picture("1.jpg").read() == files.picture("val/1.jpg").read() == b"one"
    assert files.picture("2.png").read() == b"two"
    with pytest.raises(UserError, match=r"has no picture 'notes\.txt'"):
        files.picture("notes.txt")
    with pytest.raises(UserError, match=r"has no picture '3\.jpg'; searched: images"):
        files.picture("3.jpg")
