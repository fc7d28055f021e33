"""MMMU's accuracy, with its reading of open answers and its lots for unreadable ones.

Source: https://github.com/MMMU-Benchmark/MMMU, eval/eval_utils.py and main_parse_and_eval.py:

- A multiple choice answer in which no choice can be read (the rule `mmmu`) is drawn by lot, with
  Python's generator seeded with 42, in the order of the questions.
- Of an open answer, what follows the last "is", "answer", "so" and the like of a line is compared,
  and every number in it: numbers are the same if they agree to two digits, a text is right if it
  holds the wanted one. The official code lowers the text before it looks for sentences, which
  therefore end at line ends only.
"""

import random
import re
from collections.abc import Mapping, Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Array, Measured, divide

DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
        "Public_Health"
    ),
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
        "Materials Mechanical_Engineering"
    ),
}
_DISCIPLINE_OF = {
    subject: discipline
    for discipline, subjects in DISCIPLINES.items()
    for subject in subjects.split()
}
SEED = 42
_BEFORE_ANSWER = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`, that of each discipline, and how many answers were `drawn by lot`.

    An item's type is its subject; the id's middle part where it is none
    (`validation_Art_Theory_3`).
    """
    lots = random.Random(SEED)
    names = list(DISCIPLINES)
    # Right, all and drawn; then right and all of each discipline.
    statistics = np.zeros((len(items), 3 + 2 * len(names)))
    for row, item, answer in zip(statistics, items, answers, strict=True):
        drawn = bool(item.choices) and answer.choice is None
        if drawn:
            right = lots.choice(range(len(item.choices))) in item.correct
        elif item.choices:
            right = answer.choice in item.correct
        else:
            right = is_right_open(answer.value, item.answers)
        row[:3] = (right, 1, drawn)
        discipline = _discipline(item)
        if discipline is not None:
            place = 3 + 2 * names.index(discipline)
            row[place : place + 2] = (right, 1)
    shown = [n for i, n in enumerate(names) if statistics[:, 4 + 2 * i].any()]

    def figures(sums: Array) -> Mapping[str, Array]:
        found = {"accuracy": divide(sums[..., 0], sums[..., 1])}
        for name in shown:
            place = 3 + 2 * names.index(name)
            found[name] = divide(sums[..., place], sums[..., place + 1])
        return {**found, "drawn by lot": divide(sums[..., 2], sums[..., 1])}

    return Measured(
        item_scores=statistics[:, 0],
        unit=np.arange(len(items)),
        statistics=statistics,
        figures=figures,
        lower_is_better=frozenset({"drawn by lot"}),
    )


def is_right_open(text: str, answers: Sequence[str]) -> bool:
    """Whether an open answer is right."""
    wanted = [form for answer in answers for form in _normalise(answer)]
    wanted_texts = [form for form in wanted if isinstance(form, str)]
    for form in read_open(text):
        if isinstance(form, str):
            if any(text in form for text in wanted_texts):
                return True
        elif form in wanted:
            return True
    return False


def read_open(text: str) -> set[str | float]:
    """What of an open answer is compared: texts and numbers."""
    tails = _tails(text)
    numbers = [n for tail in tails for pattern in _NUMBERS for n in pattern.findall(tail)]
    return {form for found in (*tails, *numbers) for form in _normalise(found)}


def _tails(text: str) -> list[str]:
    """What follows the words that come before an answer, the shortest of each line; else all."""
    lowered = text.strip().strip(".").lower()
    lines = lowered.split("\n")
    tails = []
    for number, line in enumerate(lines, start=1):
        # An equation may stand in the last line.
        words = (*_BEFORE_ANSWER, "=") if number == len(lines) else _BEFORE_ANSWER
        shortest = ""
        for word in words:
            if word in line:
                tail = line.split(word)[-1].strip()
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            tails.append(shortest)
    return tails or [lowered]


def _normalise(text: str) -> list[str | float]:
    """A number rounded to two digits, or the text in lower case."""
    stripped = text.strip()
    try:
        return [round(float(stripped.replace(",", "")), 2)]
    except ValueError:
        lowered = stripped.lower()
    # A letter alone is in almost every text.
    return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def _discipline(item: Item) -> str | None:
    subject = item.type.replace(" ", "_")
    if subject in _DISCIPLINE_OF:
        return _DISCIPLINE_OF[subject]
    return _DISCIPLINE_OF.get("_".join(item.id.split("_")[1:-1]))
