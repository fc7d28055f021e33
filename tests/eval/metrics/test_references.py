"""Published figures, reproduced from published predictions."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from eval.items import Answer, Item
from eval.metrics import anls, captions, vqa

SHARED = Path(__file__).resolve().parents[3].parent / "shared/data/metric-references"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/metric-references is not there"),
]


def read(path: str) -> Any:
    return json.loads((SHARED / path).read_text())


@pytest.mark.parametrize(
    "case", ["correct_choice", "first_direct_answer", "decorated_first_direct_answer"]
)
def test_vqa_accuracy_is_the_official_codes(case: str) -> None:
    path = SHARED / "vqa-accuracy/aokvqa_vqa_accuracy.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    items = [Item(row["question_id"], "", answers=tuple(row["answers"])) for row in rows]
    texts = [row["cases"][case]["prediction"] for row in rows]
    measured = vqa.measure(items, [Answer(text, text) for text in texts])
    expected = [row["cases"][case]["accuracy"] for row in rows]
    assert [round(100 * score, 2) for score in measured.item_scores] == expected
    overall = round(100 * measured.values()["VQA accuracy"], 2)
    assert overall == read("vqa-accuracy/expected.json")["overall"][case]


def test_anls_is_the_published_one() -> None:
    expected = read("anls/expected.json")
    strings = expected["strings"]
    for text, similarity in strings["cases"].items():
        assert round(anls.score(text, strings["gold"]), 2) == similarity
    rows = read("anls/gold_label.json")["data"]
    given = {row["questionId"]: row["answer"] for row in read("anls/submission.json")}
    items = [Item(str(row["questionId"]), "", answers=tuple(row["answers"])) for row in rows]
    texts = [given[row["questionId"]] for row in rows]
    measured = anls.measure(items, [Answer(text, text) for text in texts])
    assert round(measured.values()["ANLS"], 3) == expected["overall_anls_threshold_0.5"]


def test_caption_figures_are_the_published_ones() -> None:
    references, given = read("caption-fakecap-1000/gts.json"), read("caption-fakecap-1000/res.json")
    items = [Item(key, "", answers=tuple(texts)) for key, texts in references.items()]
    answers = [Answer(given[item.id][0], given[item.id][0]) for item in items]
    found = captions.measure_tokenised(items, answers).values()
    published = read("caption-fakecap-1000/expected.json")["published"]
    names = {"CIDEr": "CIDEr", "ROUGE-L": "ROUGE_L"} | {
        f"BLEU-{n}": f"Bleu_{n}" for n in range(1, 5)
    }
    for ours, theirs in names.items():
        assert found[f"{ours} (as tokenised)"] == pytest.approx(published[theirs], abs=1e-6)
