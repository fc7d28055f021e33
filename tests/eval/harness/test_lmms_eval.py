"""Our model as lmms-eval's, on a local task with pictures.

lmms-eval needs an environment of its own (docs/evaluation.md); this is skipped elsewhere.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

import vlm

pytest.importorskip("lmms_eval", reason="needs the extra `lmms`, in an environment of its own")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from eval.harness.lmms_eval import HarnessModel

FUNCTIONS = """
from PIL import Image

def pictures(doc):
    return [Image.open(doc["picture"])]

def question(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None,
             previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == 1:
        return [], f"Why {previous_output[0]}?", False, previous_output, None
    return None, None, True, previous_output, None

def rounds(doc, results):
    return {"exact_match": float(len(results[0]) == 2)}
"""
TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: ROWS}
test_split: train
output_type: OUTPUT
doc_to_visual: !function functions.pictures
doc_to_text: !function functions.question
"""
CHOICES = """
doc_to_choice: [circles, "It is red.", "no"]
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
doc_to_target: "{{said}}"
generation_kwargs: {max_new_tokens: 5, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROUNDS = "process_results: !function functions.rounds\n"
QUESTIONS = ["how many circles?", "<image> is it red?", "<|eot_id|> what?", "is it red?"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., Any]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number, question in enumerate(QUESTIONS):
        path = folder / f"{number}.png"
        picture(number, 40, 30).save(path)
        rows.append({"question": question, "picture": str(path), "gold": number % 3, "said": "x"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "functions.py").write_text(FUNCTIONS)
    kinds = {
        "choices": ("multiple_choice", CHOICES),
        "written": ("generate_until", WRITTEN),
        "rounds": ("generate_until_multi_round", f"{WRITTEN}{ROUNDS}"),
    }
    for name, (output, rest) in kinds.items():
        text = TASK.replace("NAME", name).replace("ROWS", str(folder / "rows.jsonl"))
        (folder / f"{name}.yaml").write_text(text.replace("OUTPUT", output) + rest)
    return {"folder": folder, "rows": rows}


@pytest.fixture(scope="module")
def samples(model: vlm.Model, tasks: dict[str, Any]) -> dict[str, Any]:
    known = TaskManager(include_path=str(tasks["folder"]), include_defaults=False)
    found = simple_evaluate(
        HarnessModel(model, batch_size=4),
        tasks=["choices", "written", "rounds"],
        task_manager=known,
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    return {"results": found["results"], **found["samples"]}


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    image = {"type": "image", "image": row["picture"]}
    words = {"type": "text", "text": row["question"].replace("<image>", "")}
    return [{"role": "user", "content": [image, words]}]


def test_the_entry_point_names_our_class() -> None:
    assert get_model("vlm") is HarnessModel


def test_what_is_generated_is_what_chat_answers(
    model: vlm.Model, tasks: dict[str, Any], samples: dict[str, Any]
) -> None:
    expected = [model.chat(messages(row), max_tokens=5).text for row in tasks["rows"]]
    assert [sample["resps"][0][0] for sample in samples["written"]] == expected


def test_accuracy_by_likelihood_is_that_of_our_scores(
    model: vlm.Model, tasks: dict[str, Any], samples: dict[str, Any]
) -> None:
    right = []
    for row, sample in zip(tasks["rows"], samples["choices"], strict=True):
        scored = model.score(messages(row), ["circles", "It is red.", "no"])
        losses = [-each.logprob / each.num_tokens for each in scored]
        told = [loss for ((loss, _),) in sample["resps"]]
        # The same float32 arithmetic in batches of other sizes.
        assert told == pytest.approx(losses, abs=1e-4)
        right.append(losses.index(min(losses)) == row["gold"])
    assert samples["results"]["choices"]["acc,none"] == sum(right) / len(right)


def test_rounds_are_asked_until_the_task_ends_them(
    model: vlm.Model, tasks: dict[str, Any], samples: dict[str, Any]
) -> None:
    for row, sample in zip(tasks["rows"], samples["rounds"], strict=True):
        first = model.chat(messages(row), max_tokens=5).text
        second = model.chat([{"role": "user", "content": f"Why {first}?"}], max_tokens=5).text
        assert list(sample["resps"][0][0]) == [first, second]
