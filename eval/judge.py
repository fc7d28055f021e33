"""Grades that another model gives to open answers: an endpoint's, or that of a model folder.

A benchmark brings what the judge is told, as data; nobody judges unless the caller said who, as
`vlm eval --judge` does. What the judge said is kept in a file, so that nothing is judged twice.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eval.files import read_rows
from eval.items import Answer, Item
from vlm.errors import UserError

Chat = list[dict[str, Any]]

LOWEST, HIGHEST = 1, 10
MAX_TOKENS = 2048
TOGETHER = 32
_FIELD = re.compile(r"\{(\w+)\}")
# Source: FastChat, fastchat/llm_judge/common.py: the second one where the first is not there.
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


class Judge(Protocol):
    """Reads instructions and writes judgements.

    name: what it is called in the file of judgements.
    """

    name: str

    def write(self, chats: Sequence[Chat]) -> list[str]:
        """The judge's answers, in order."""
        ...


@dataclass(frozen=True)
class GradingPrompt:
    """What a judge is told of a turn.

    template: with the fields `question`, `answer` of one turn, or `question_1`, `answer_2` and so
        on of several, and `ref_answer_1` of a reference, in braces.
    """

    name: str
    system: str
    template: str

    def fill(self, item: Item, turns: Sequence[str]) -> str:
        """The words for an item, answered by `turns`.

        Raises:
            UserError: the template names something that the item has not.
        """
        questions = (item.question, *item.follow_ups)
        words = {"question": item.question, "answer": turns[0]}
        for stem, texts in (
            ("question", questions),
            ("answer", turns),
            ("ref_answer", item.facts["reference"]),
        ):
            words |= {f"{stem}_{number}": text for number, text in enumerate(texts, start=1)}

        def word(match: re.Match[str]) -> str:
            if match[1] not in words:
                raise UserError(
                    f"the judge's prompt {self.name!r} needs {match[1]} of item {item.id!r}, which "
                    "is not there; references have a file of their own"
                )
            return words[match[1]]

        return _FIELD.sub(word, self.template)


@dataclass(frozen=True)
class Grader:
    """Lets a judge grade answers, and keeps what it said.

    path: a file of judgements in FastChat's form, which is read first and added to.
    model: what the answers' model is called there.
    """

    judge: Judge
    path: Path
    model: str

    def grade(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[list[float | None]]:
        """The grade, 1..10, of each turn of each answer; None where the judge gave none.

        Raises:
            UserError: an item says nothing of how it is graded.
        """
        asked = {
            (item.id, turn): self._question(item, answer, turn)
            for item, answer in zip(items, answers, strict=True)
            for turn in range(1, 2 + len(item.follow_ups))
        }
        known = self._known()
        missing = [
            key
            for key, (prompt, words) in asked.items()
            if (*key, self.judge.name, prompt.name, words) not in known
        ]
        for first in range(0, len(missing), TOGETHER):
            keys = missing[first : first + TOGETHER]
            chats = [_chat(*asked[key]) for key in keys]
            for key, judgement in zip(keys, self.judge.write(chats), strict=True):
                prompt, words = asked[key]
                known[(*key, self.judge.name, prompt.name, words)] = judgement
                self._keep(*key, prompt, words, judgement)
        return [
            [
                read_rating(known[(item.id, turn, self.judge.name, prompt.name, words)])
                for turn in range(1, 2 + len(item.follow_ups))
                for prompt, words in [asked[item.id, turn]]
            ]
            for item in items
        ]

    def _question(self, item: Item, answer: Answer, turn: int) -> tuple[GradingPrompt, str]:
        prompts = item.facts.get("grading", ())
        if len(prompts) < turn:
            raise UserError(
                f"nothing says how turn {turn} of item {item.id!r} is judged: the benchmark's file "
                "of judge prompts is missing, or has none for it"
            )
        turns = [answer.text, *answer.follow_ups]
        turns += [""] * (1 + len(item.follow_ups) - len(turns))
        return prompts[turn - 1], prompts[turn - 1].fill(item, turns)

    def _known(self) -> dict[tuple[str, int, str, str, str], str]:
        if not self.path.exists():
            return {}
        found = {}
        for _, row in read_rows(self.path):
            judge, prompt = row["judge"]
            key = (str(row["question_id"]), row["turn"], judge, prompt, row["user_prompt"])
            found[key] = row["judgment"]
        return found

    def _keep(
        self, item_id: str, turn: int, prompt: GradingPrompt, words: str, judgement: str
    ) -> None:
        rating = read_rating(judgement)
        row = {
            "question_id": int(item_id) if item_id.isdigit() else item_id,
            "model": self.model,
            "judge": [self.judge.name, prompt.name],
            "user_prompt": words,
            "judgment": judgement,
            "score": -1 if rating is None else rating,
            "turn": turn,
            "tstamp": time.time(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rating(judgement: str) -> float | None:
    """The grade in a judgement, `[[7]]` or `[7]`; None if there is none, or none of 1..10."""
    for pattern in _RATINGS:
        found = pattern.search(judgement)
        if found is not None:
            rating = float(found[1])
            return rating if LOWEST <= rating <= HIGHEST else None
    return None


_current: ContextVar[Grader | None] = ContextVar("the grader of open answers", default=None)


@contextmanager
def judged_by(grader: Grader | None) -> Iterator[None]:
    """Let a grader grade open answers while this is entered; None: nobody does."""
    token = _current.set(grader)
    try:
        yield
    finally:
        _current.reset(token)


def current_grader() -> Grader | None:
    """The grader that the caller chose."""
    return _current.get()


class ModelJudge:
    """A model folder as judge.

    Args:
        max_tokens: of a judgement.
    """

    def __init__(self, folder: Path, max_tokens: int = MAX_TOKENS) -> None:
        from vlm.api import load

        self.model = load(folder)
        self.name = folder.resolve().name
        self.max_tokens = max_tokens

    def write(self, chats: Sequence[Chat]) -> list[str]:
        """Greedy answers."""
        replies = self.model.chat_batch(chats, max_tokens=self.max_tokens)
        return [reply.text for reply in replies]


def open_judge(where: str, model: str | None, settings: Mapping[str, str]) -> Judge:
    """A judge by its address or its folder.

    Args:
        where: `http://host/v1` of an endpoint in the form of OpenAI's API, or a model folder.
        model: what the endpoint calls the model; None: the only one that it lists.
        settings: an environment: `VLM_JUDGE_API_KEY`, else `OPENAI_API_KEY`, is the endpoint's key.
    Raises:
        UserError: there is no such folder, or the endpoint does not say which model to ask.
    """
    if where.startswith(("http://", "https://")):
        from eval.judge_endpoint import EndpointJudge

        key = settings.get("VLM_JUDGE_API_KEY") or settings.get("OPENAI_API_KEY")
        return EndpointJudge(where, model, key)
    if model is not None:
        raise UserError(f"a judge's model is named for an address; {where!r} is a folder")
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(f"--judge is {where!r}, needed: a model folder, or an http address")
    return ModelJudge(folder)


def _chat(prompt: GradingPrompt, words: str) -> Chat:
    return [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": words},
    ]
