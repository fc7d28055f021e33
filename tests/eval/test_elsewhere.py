import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from eval.elsewhere import Fields, Given, read_given
from eval.predictions import Prediction, PredictionFile
from vlm.errors import UserError


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return path


def texts(given: list[Given]) -> dict[str | None, str]:
    return {row.id: row.text for row in given}


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 7, "answer": "cat"},  # VQA
        {"question_id": "7", "prompt": "What?", "text": "cat", "answer_id": "x"},  # LLaVA
        {"questionId": "7", "prediction": "cat"},  # GQA
        {"image_id": 7, "caption": "cat"},  # COCO
        {"id": "7", "response": "cat", "answer": "A", "index2ans": {}},  # MMMU
        {"index": 7.0, "prediction": "cat", "question": "?"},  # a table's number
    ],
)
def test_rows_of_the_published_forms_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    for name, content in (("a.json", [row]), ("a.jsonl", json.dumps(row) + "\n\n")):
        (given,) = read_given(written(tmp_path / name, content))
        assert (given.id, given.text) == ("7", "cat")
    # POPE's files are JSON Lines that end in .json.
    assert len(read_given(written(tmp_path / "b.json", f"{json.dumps(row)}\n" * 2))) == 2


def test_answers_by_id_are_read(tmp_path: Path) -> None:
    given = read_given(written(tmp_path / "a.json", {"v1_0": "a cat", "v1_1": 3, "v1_2": None}))
    assert texts(given) == {"v1_0": "a cat", "v1_1": "3", "v1_2": ""}


def test_scienceqas_numbers_are_choices(tmp_path: Path) -> None:
    content = {"acc": 75.1, "results": {"4": 0, "5": 2, "6": -1}, "outputs": {"4": "A"}}
    assert texts(read_given(written(tmp_path / "a.json", content))) == {"4": "A", "5": "C", "6": ""}


def test_grades_of_several_runs_are_read(tmp_path: Path) -> None:
    content = {"v1_0": {"model": ["gpt-4", "gpt-4"], "content": ["0.5", "1"], "score": [0.5, 1]}}
    (given,) = read_given(written(tmp_path / "grades.json", content))
    assert (given.id, given.text, given.further) == ("v1_0", "0.5", ("1",))


def test_tables_are_read(tmp_path: Path) -> None:
    table = 'index\tquestion\tA\tprediction\n1000007\t"two\nlines"\tx\tB\n'
    assert texts(read_given(written(tmp_path / "a.tsv", table))) == {"1000007": "B"}


def test_excel_is_read(tmp_path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    for row in (("index", "A", "prediction"), (7, "x", "B"), (1000007, "x", None)):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert texts(read_given(tmp_path / "a.xlsx")) == {"7": "B", "1000007": ""}


def test_mmes_text_files_are_read(tmp_path: Path) -> None:
    written(tmp_path / "count.txt", "1.jpg\tTwo?\tYes\tYes, two\n1.jpg\tOne?\tNo\tno\n")
    written(tmp_path / "color.txt", "1.jpg\tRed?\tYes\t\n")
    given = read_given(tmp_path)
    assert [(row.part[0], row.picture, row.question, row.text) for row in given] == [
        ("color", "1.jpg", "Red?", ""),
        ("count", "1.jpg", "Two?", "Yes, two"),
        ("count", "1.jpg", "One?", "no"),
    ]


def test_a_folder_of_files_is_read_packed_too(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "text": "x"}\n'))
    written(tmp_path / "Art/output.json", [{"id": "2", "response": "y"}])
    written(tmp_path / "notes.md", "not read")
    assert texts(read_given(tmp_path)) == {"1": "x", "2": "y"}


def test_rounds_of_llava_are_rotated_copies(tmp_path: Path) -> None:
    rows = [{"question_id": 7, "round_id": n, "text": "A"} for n in (0, 1)]
    assert list(texts(read_given(written(tmp_path / "a.json", rows)))) == ["7", "7+1"]


def test_fields_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [{"id": 1, "number": 2, "said": "x", "text": "y"}])
    assert texts(read_given(path, Fields("number", "said"))) == {"2": "x"}


def test_our_own_predictions_are_read(tmp_path: Path) -> None:
    said = [Prediction(id="1", text="x"), Prediction(id="2", logprobs=(-1, -2), num_tokens=(1, 1))]
    file = PredictionFile(tmp_path / "a.predictions.jsonl", {"benchmark": "x"})
    file.append(said)
    file.close()
    given = read_given(file.path)
    assert [row.prediction(str(row.id)) for row in given] == said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", [{"id": 1}], "a.json:1 has no prediction; it has id"),
        ("a.json", ["yes"], "a.json:1 is a str"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n{', "a.jsonl:2 is no JSON"),
        ("a.json", {"results": {"1": 40}}, "is 40, needed: the number of a choice"),
        ("a.json", [{"id": 1, "text": {"a": 1}}], "has a dict as its prediction"),
        ("a.json", [], "holds no predictions"),
        ("a.pkl", "x", "of no known format"),
        ("count.txt", "one\ttwo\n", "count.txt:1 has 2 cells"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_given(written(tmp_path / name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file and no folder"):
        read_given(tmp_path / "gone.json")
