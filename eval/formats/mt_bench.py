"""MT-Bench: open questions with one that follows, and the answers' format of FastChat."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from eval.files import Files, read_rows
from eval.formats.options import Options, read_options
from eval.items import Answer, Item
from eval.judge import GradingPrompt
from vlm.errors import UserError

# Judged beside a reference. Source: FastChat, fastchat/llm_judge/common.py, NEED_REF_CATS.
WITH_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; those after the first are its follow-ups, and the category its type.

    `facts`: `reference`, the answers of the `references` file; `grading`, what a judge is told of
    each turn, of the `judge_prompts` file; both empty where there is no such file.

    Raises:
        UserError: a question without turns; names it.
    """
    read_options(Options, options)
    references = {}
    if files.has("references"):
        references = {
            str(row["question_id"]): tuple(row["choices"][0]["turns"])
            for _, row in files.rows("references")
        }
    prompts = _grading_prompts(files) if files.has("judge_prompts") else {}
    for where, row in files.rows("questions"):
        if not row["turns"]:
            raise UserError(f"{where} has no turns")
        first, *later = row["turns"]
        number = str(row["question_id"])
        yield Item(
            id=number,
            question=first,
            follow_ups=tuple(later),
            type=row["category"],
            facts={
                "reference": references.get(number, ()),
                "grading": prompts.get(row["category"] in WITH_REFERENCE, ())[: 1 + len(later)],
            },
        )


def _grading_prompts(files: Files) -> dict[bool, tuple[GradingPrompt, ...]]:
    """Those for one answer, of its first and its second turn, with a reference and without."""
    found: dict[tuple[bool, int], GradingPrompt] = {}
    for _, row in files.rows("judge_prompts"):
        template = row["prompt_template"]
        if row["type"] == "single":
            turn = 2 if "{question_2}" in template else 1
            found[("{ref_answer_1}" in template, turn)] = GradingPrompt(
                row["name"], row["system_prompt"], template
            )
    return {
        referred: tuple(found[referred, turn] for turn in (1, 2) if (referred, turn) in found)
        for referred in (False, True)
    }


def write_answers(
    path: Path, items: Sequence[Item], answers: Sequence[Answer], model_id: str, time_s: float
) -> None:
    """Write answers as FastChat's scripts read them, to be judged elsewhere.

    Args:
        model_id: what the model is called in judgements.
        time_s: when they were given, in seconds since 1970.
    """
    with path.open("w", encoding="utf-8") as file:
        for item, answer in zip(items, answers, strict=True):
            number: str | int = int(item.id) if item.id.isdigit() else item.id
            turns = [answer.text, *answer.follow_ups]
            row = {
                "question_id": number,
                "answer_id": uuid5(NAMESPACE_URL, json.dumps([model_id, number, turns])).hex,
                "model_id": model_id,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": time_s,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """The turns of a model's answers by question, from such a file.

    Raises:
        UserError: it is none, or answers a question twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for where, row in read_rows(path):
        try:
            number, turns = str(row["question_id"]), tuple(row["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{where} is no answer of FastChat's form: {error!r}") from None
        if number in found:
            raise UserError(f"{where} answers question {number} again")
        found[number] = turns
    return found
