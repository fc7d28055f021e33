"""`vlm eval score`: published forms of predictions, on a few items in the published layout."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval.benchmark import find_benchmark
from eval.commands import app
from eval.items import LETTERS, Item
from vlm.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"

Score = Callable[..., dict[str, Any]]


@pytest.fixture
def score(tmp_path: Path) -> Score:
    """Runs the command and returns the figures that it writes."""

    def scored(benchmark: str, predictions: Path, data: Path, *more: str) -> dict[str, Any]:
        out = tmp_path / "figures.json"
        arguments = ["--predictions", str(predictions), "--data", str(data), "--json", str(out)]
        result = CliRunner().invoke(
            app, ["eval", "score", "--benchmark", benchmark, *arguments, *more]
        )
        if result.exception is not None:
            raise result.exception
        report: dict[str, Any] = json.loads(out.read_text())
        return report

    return scored


def values(report: dict[str, Any], row: str | None = None) -> dict[str, float]:
    figures = (report["overall"] if row is None else report["types"][row])["figures"]
    return {name: figure["value"] for name, figure in figures.items()}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """Two settings of four questions each, as the repository has them, without pictures."""
    for setting, last in (("popular", "car"), ("random", "bed")):
        names = ("dog", "cat", "cup", last)
        rows = [
            {
                "question_id": number,
                "image": "COCO_val2014_000000000042.jpg",
                "text": f"Is there a {name} in the image?",
                "label": "yes" if number % 2 else "no",
            }
            for number, name in enumerate(names, start=1)
        ]
        write_lines(tmp_path / f"pope/coco_pope_{setting}.json", rows)
    return tmp_path / "pope"


def pope_items(data: Path) -> list[Item]:
    return list(find_benchmark("pope").items(data, names_only=True))


def test_popes_answers_are_matched_by_order(score: Score, pope: Path, tmp_path: Path) -> None:
    said = ["Yes, there is.", "No, there is no cat.", "No", "Yes"] * 2
    rows = [
        {"question": item.question, "answer": text}
        for item, text in zip(pope_items(pope), said, strict=True)
    ]
    report = score("pope", write_lines(tmp_path / "said.jsonl", rows), pope)
    assert report["matched_by"] == "order"
    assert values(report)["accuracy"] == values(report, "random")["accuracy"] == 0.5
    assert values(report)["F1"] == values(report)["F1, mean of types"] == 0.5
    assert report["overall"]["num_items"] == 8
    assert report["settings"]["rule"] == "pope"


def test_one_setting_of_pope_may_be_scored_alone(score: Score, pope: Path, tmp_path: Path) -> None:
    rows = [{"question_id": number, "text": "Yes"} for number in range(1, 5)]
    path = write_lines(tmp_path / "said.jsonl", rows)
    report = score("pope", path, pope, "--type", "random")
    assert values(report) == pytest.approx(
        {"F1": 2 / 3, "precision": 0.5, "recall": 1, "accuracy": 0.5, "yes rate": 1}
    )
    alone = score("pope", path, pope / "coco_pope_popular.json")
    assert values(alone)["accuracy"] == 0.5


def test_missing_predictions_are_named_and_on_request_wrong(
    score: Score, pope: Path, tmp_path: Path
) -> None:
    rows = [{"question_id": item.id, "text": item.answers[0]} for item in pope_items(pope)][:6]
    path = write_lines(tmp_path / "said.jsonl", rows)
    with pytest.raises(UserError, match="2 of 8 items have no prediction: 'random/3', 'random/4'"):
        score("pope", path, pope)
    report = score("pope", path, pope, "--allow-missing")
    assert report["missing"] == ["random/3", "random/4"]
    assert values(report)["accuracy"] == 6 / 8


def test_settings_and_fields_may_be_changed(score: Score, pope: Path, tmp_path: Path) -> None:
    rows = [{"key": item.id, "said": "NO"} for item in pope_items(pope)]
    path = write_lines(tmp_path / "said.jsonl", rows)
    fields = ("--id-field", "key", "--answer-field", "said")
    assert values(score("pope", path, pope, *fields))["yes rate"] == 1
    assert values(score("pope", path, pope, *fields, "rule=yes_no"))["yes rate"] == 0
    with pytest.raises(UserError, match="no items of type 'rare'"):
        score("pope", path, pope, *fields, "--type", "rare")


def test_mme_is_scored_from_its_eval_tools_files(score: Score, tmp_path: Path) -> None:
    folder = tmp_path / "mme"
    folder.mkdir()
    for task, said in (("existence", ("Yes", "no, it is not")), ("OCR", ("yes", "I cannot say"))):
        lines = [
            f"1.jpg\tQuestion {n}?\t{right}\t{text}"
            for n, (right, text) in enumerate(zip(("Yes", "No"), said, strict=True))
        ]
        (folder / f"{task}.txt").write_text("\n".join(lines) + "\n")
    report = score("mme", folder, folder)
    assert report["matched_by"] == "picture and question"
    assert (values(report)["existence"], values(report)["OCR"]) == (200, 50)
    assert values(report)["perception"] == 250
    assert values(report)["cognition"] is None


def test_mmbench_is_scored_from_tables_with_rotated_copies(score: Score, tmp_path: Path) -> None:
    columns = ("index", "question", "A", "B", "answer", "category", "l2-category", "prediction")
    rows = [
        (7, "What?", "cat", "dog", "A", "object", "perception", "A"),
        (1000007, "What?", "dog", "cat", "B", "object", "perception", "cat"),
        (8, "Where?", "left", "right", "B", "place", "reasoning", "B"),
        (1000008, "Where?", "right", "left", "A", "place", "reasoning", "left"),
    ]
    with (tmp_path / "said.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *rows])
    report = score("mmbench", tmp_path / "said.tsv", tmp_path / "said.tsv")
    assert values(report) == {"circular accuracy": 0.5, "vanilla accuracy": 1}
    assert values(report, "perception")["circular accuracy"] == 1


def test_mmmu_is_scored_from_its_repositorys_files(score: Score, tmp_path: Path) -> None:
    row = {
        "id": "validation_Art_1",
        "question_type": "multiple-choice",
        "answer": "B",
        "all_choices": ["A", "B"],
        "index2ans": {"A": "oil", "B": "ink"},
        "response": "(B) ink",
    }
    open_row = {
        "id": "validation_Math_1",
        "question_type": "short-answer",
        "answer": "3",
        "response": "So x = 4",
    }
    outputs = write_json(tmp_path / "outputs/Art/output.json", [row, open_row])
    by_output = score("mmmu", outputs, outputs)
    assert values(by_output) == {
        "accuracy": 0.5,
        "Art and Design": 1,
        "Science": 0,
        "drawn by lot": 0,
    }
    facts = {
        r["id"]: {"question_type": r["question_type"], "ground_truth": r["answer"]}
        for r in (row, open_row)
    }
    parsed = write_json(tmp_path / "parsed.json", {row["id"]: "B", open_row["id"]: "4"})
    by_answers = score("mmmu", parsed, write_json(tmp_path / "answer_dict_val.json", facts))
    assert values(by_answers) == values(by_output)


def test_scienceqa_is_scored_from_numbers_of_choices(score: Score, tmp_path: Path) -> None:
    problems = {
        str(number): {
            "question": "Which?",
            "choices": ["x", "y", "z"],
            "answer": number % 3,
            "hint": "look" if number == 1 else "",
            "image": None,
            "subject": "natural science",
            "grade": "grade7",
            "split": "test",
        }
        for number in range(4)
    }
    write_json(tmp_path / "sqa/problems.json", problems)
    path = write_json(tmp_path / "said.json", {"results": {"0": 0, "1": 1, "2": 0, "3": -1}})
    report = score("scienceqa", path, tmp_path / "sqa")
    assert values(report)["accuracy"] == 0.5
    assert values(report)["text context"] == 1


def test_mm_vet_is_scored_from_released_grades(score: Score, tmp_path: Path) -> None:
    questions = {
        f"v1_{n}": {"imagename": "x.png", "question": "?", "answer": "!", "capability": needs}
        for n, needs in enumerate((["ocr", "math"], ["rec"]))
    }
    write_json(tmp_path / "vet/mm-vet.json", questions)
    grades = {"v1_0": {"score": [0.5, 0.7]}, "v1_1": {"score": [1.0, 1.0]}}
    report = score("mm_vet", write_json(tmp_path / "grades.json", grades), tmp_path / "vet")
    assert values(report)["total"] == pytest.approx(0.8)
    assert values(report)["math"] == pytest.approx(0.6)
    texts = write_json(tmp_path / "texts.json", {"v1_0": "x = 1", "v1_1": "a cat"})
    with pytest.raises(UserError, match="needed: a judge's grade"):
        score("mm_vet", texts, tmp_path / "vet")


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_pope_is_scored_on_the_published_questions(score: Score, tmp_path: Path) -> None:
    """Every tenth answer is wrong, so each figure is known."""
    data = SHARED / "text-benchmarks"
    rows = []
    for setting in ("adversarial", "popular", "random"):
        text = gzip.decompress((data / f"pope_coco_{setting}.jsonl.gz").read_bytes())
        rows += [json.loads(line) for line in text.splitlines()]
    flip = {"yes": "No, there is not.", "no": "Yes, there is."}
    said = [
        {
            "question": row["text"],
            "answer": flip[row["label"]] if n % 10 == 0 else row["label"].title(),
        }
        for n, row in enumerate(rows)
    ]
    path = write_lines(tmp_path / "said.jsonl", said)
    report = score("pope", path, data, "files.questions=pope_coco_*.jsonl.gz")
    assert report["overall"]["num_items"] == len(rows)
    wrong = [row["label"] for row in rows[::10]]
    hits = sum(row["label"] == "yes" for row in rows) - wrong.count("yes")
    found = values(report)
    assert found["accuracy"] == pytest.approx(1 - len(wrong) / len(rows))
    assert found["precision"] == pytest.approx(hits / (hits + wrong.count("no")))
    assert found["recall"] == pytest.approx(hits / (hits + wrong.count("yes")))


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_aokvqas_choices_are_scored_on_the_published_questions(
    score: Score, tmp_path: Path
) -> None:
    data = SHARED / "text-benchmarks/aokvqa_v1p0_val.json.gz"
    rows = json.loads(gzip.decompress(data.read_bytes()))
    said = {row["question_id"]: LETTERS[n % 4] for n, row in enumerate(rows)}
    right = sum(row["correct_choice_idx"] == n % 4 for n, row in enumerate(rows))
    report = score("aokvqa_choices", write_json(tmp_path / "said.json", said), data)
    assert values(report)["accuracy"] == pytest.approx(right / len(rows))
