import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from data.pack import Manifest, PackSettings, Part, pack_parts
from data.schema import RawSample, Reject
from data.shards import read_folder
from data.sources import open_source
from vlm.errors import UserError

# As `datasets` stores its feature `Image`.
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TEXTS = pa.list_(pa.struct({"user": pa.string(), "assistant": pa.string(), "source": pa.string()}))


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def cell(value: int | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": None if value is None else picture(value), "path": path}


def captions(*values: int) -> pa.Table:
    rows = [{"image": cell(value), "caption": f"Number {value}."} for value in values]
    return pa.Table.from_pylist(rows, pa.schema({"image": PICTURE, "caption": pa.string()}))


def cauldron() -> pa.Table:
    def turn(user: str, assistant: str) -> dict[str, str]:
        return {"user": user, "assistant": assistant, "source": "ai2d"}

    rows = [
        {"images": [cell(1), cell(2)], "texts": [turn("Which?", "A."), turn("Why?", "So.")]},
        {"images": [], "texts": [turn("Two and two?", "Four.")]},
        {"images": [cell(3)], "texts": [turn("What <image>?", " ")]},
    ]
    return pa.Table.from_pylist(rows, pa.schema({"images": pa.list_(PICTURE), "texts": TEXTS}))


def save_to_disk(table: pa.Table, folder: Path, split: str | None = None) -> None:
    """The layout that `Dataset.save_to_disk` writes: Arrow streams and their list."""
    folder.mkdir(parents=True)
    names = []
    for index in range(2):
        names.append(f"data-{index:05d}-of-00002.arrow")
        half = table.slice(index * 2, 2 if index == 0 else None)
        with pa.OSFile(str(folder / names[-1]), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(half)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def read(source: Path, **options: Any) -> tuple[list[RawSample], list[Reject]]:
    items = list(open_source(source, **options).read())
    kept = [item for item in items if isinstance(item, RawSample)]
    return kept, [item for item in items if isinstance(item, Reject)]


def test_captions_in_parquet_give_samples_with_the_very_bytes(tmp_path: Path) -> None:
    parquet.write_table(captions(5, 6, 7), tmp_path / "any.parquet", row_group_size=2)
    kept, rejects = read(tmp_path / "any.parquet")
    assert not rejects
    assert [raw.key for raw in kept] == [f"any/{row}/image" for row in range(3)]
    assert [raw.images for raw in kept] == [[picture(value)] for value in (5, 6, 7)]
    assert [raw.sample.messages[1].text for raw in kept][2] == "Number 7."


def test_the_cauldron_shows_all_pictures_first_and_keeps_the_turns(tmp_path: Path) -> None:
    (tmp_path / "ai2d").mkdir()
    parquet.write_table(cauldron(), tmp_path / "ai2d/train-00000-of-00001-0a1b2c.parquet")
    source = open_source(tmp_path / "ai2d")
    kept, rejects = read(tmp_path / "ai2d")
    assert source.format == "cauldron"
    first, text_only = kept
    assert first.images == [picture(1), picture(2)] and text_only.images == []
    assert [part.type for part in first.sample.messages[0].content] == ["image", "image", "text"]
    assert [message.text for message in first.sample.messages] == ["Which?", "A.", "Why?", "So."]
    assert first.sample.source == "ai2d"
    assert [(reject.key, reject.kind) for reject in rejects] == [("ai2d-2", "bad sample")]


def test_the_cauldron_in_jsonl_names_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    row = {"images": ["1.png"], "texts": [{"user": "Which?", "assistant": "A."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (raw,), _ = read(tmp_path)
    assert raw.images == [picture(1)] and raw.sample.source == "cauldron"


@pytest.mark.parametrize("table", [captions(1, 2, 3), cauldron()], ids=["captions", "cauldron"])
def test_a_saved_folder_of_datasets_reads_like_its_parquet(tmp_path: Path, table: pa.Table) -> None:
    save_to_disk(table, tmp_path / "saved")
    parquet.write_table(table, tmp_path / "saved.parquet")
    saved, rejects = read(tmp_path / "saved")
    flat, flat_rejects = read(tmp_path / "saved.parquet")
    assert [(raw.sample, raw.images) for raw in saved] == [(r.sample, r.images) for r in flat]
    assert [reject.reason for reject in rejects] == [reject.reason for reject in flat_rejects]


def test_splits_must_be_chosen_where_there_are_several(tmp_path: Path) -> None:
    save_to_disk(captions(1, 2, 3), tmp_path / "saved/train")
    save_to_disk(captions(4, 5, 6), tmp_path / "saved/test")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "hub/data").mkdir(parents=True)
    for split, table in [("train", captions(1, 2, 3)), ("test", captions(4, 5, 6))]:
        parquet.write_table(table, tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    for folder in ("saved", "hub"):
        with pytest.raises(UserError, match="holds the splits test, train: choose one"):
            open_source(tmp_path / folder)
        kept, _ = read(tmp_path / folder, split="test")
        assert [raw.images[0] for raw in kept] == [picture(value) for value in (4, 5, 6)]


def test_a_picture_that_is_only_a_path_is_looked_for_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    rows = [
        {"image": cell(None, "1.png"), "caption": "here"},
        {"image": cell(None, "gone.png"), "caption": "lost"},
        {"image": cell(None), "caption": "empty"},
        {"image": None, "caption": "none"},
    ]
    schema = pa.schema({"image": PICTURE, "caption": pa.string()})
    parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "t.parquet")
    (raw,), rejects = read(tmp_path / "t.parquet")
    assert raw.images == [picture(1)]
    assert [reject.kind for reject in rejects] == [
        "no picture",
        "missing picture",
        "missing picture",
    ]


def test_vqa_columns_of_the_hub_keep_all_answers(tmp_path: Path) -> None:
    rows = [
        {
            "image": cell(1),
            "question": "How many?",
            "question_id": 17,
            "answer_type": "number",
            "multiple_choice_answer": "2",
            "answers": [{"answer": "2"}, {"answer": "two"}, {"answer": "2"}],
        }
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "vqa.parquet")
    (raw,), _ = read(tmp_path / "vqa.parquet")
    assert raw.key == "17" and raw.sample.messages[1].text == "2"
    assert raw.sample.turns[0].type == "number"
    assert raw.sample.turns[0].answers == ("2", "two", "2")


def test_workers_read_tables_themselves(tmp_path: Path) -> None:
    parquet.write_table(captions(*range(40)), tmp_path / "t.parquet", row_group_size=5)
    source = open_source(tmp_path / "t.parquet")
    for num_workers in (0, 2):
        part = Part(source.items, source.pictures, fingerprint=source.fingerprint)
        pack_parts(
            {"": part}, tmp_path / f"out{num_workers}", PackSettings(num_workers=num_workers)
        )
    assert Manifest.read(tmp_path / "out0") == Manifest.read(tmp_path / "out2")
    assert [raw.images[0] for raw in read_folder(tmp_path / "out2")] == list(
        map(picture, range(40))
    )


def test_damaged_tables_and_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read as a table"):
        open_source(tmp_path / "bad.parquet")
    save_to_disk(captions(1, 2, 3), tmp_path / "saved")
    (tmp_path / "saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow is missing"):
        open_source(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("[]")
    with pytest.raises(UserError, match="is no whole folder of `datasets`"):
        open_source(tmp_path / "saved")


def test_without_pyarrow_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"need pyarrow: install the extra, .*vlm\[parquet\]"):
        open_source(tmp_path / "t.parquet")


def test_a_table_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    for first in (1, 5):
        parquet.write_table(captions(first, 2), tmp_path / "t.parquet")
        kept, _ = read(tmp_path / "t.parquet")
        assert kept[0].images == [picture(first)]
