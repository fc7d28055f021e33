"""ANLS: how near a prediction comes to an answer, letter by letter; DocVQA's metric.

Source: A. F. Biten et al., Scene Text Visual Question Answering (2019),
https://arxiv.org/abs/1905.13648, section 4.2: of the normalised Levenshtein distance NL to the
nearest answer, 1 - NL where NL < 0.5, else 0. Case and runs of white space do not matter, as in
https://github.com/shunk031/ANLS.
"""

from collections.abc import Sequence

from eval.items import Answer, Item
from eval.metrics.measured import Measured, mean

THRESHOLD = 0.5


def score(prediction: str, answers: Sequence[str]) -> float:
    """The similarity to the nearest answer, 0 or more than 0.5 up to 1."""
    given = _plain(prediction)
    return max((_similarity(given, _plain(answer)) for answer in answers), default=0.0)


def edit_distance(first: str, second: str) -> int:
    """The fewest insertions, deletions and changes of a letter from one text to the other."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            changed = diagonal + (letter != other)
            diagonal = row[j]
            row[j] = min(changed, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`ANLS`."""
    pairs = zip(items, answers, strict=True)
    return mean("ANLS", [score(answer.value, item.answers) for item, answer in pairs])


def _similarity(given: str, answer: str) -> float:
    longest = max(len(given), len(answer))
    if not longest:
        return 1.0
    distance = edit_distance(given, answer) / longest
    return 1 - distance if distance < THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
