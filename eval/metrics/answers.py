"""How right an answer is, and how sure a share of right answers is."""

import math
import string
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

ARTICLES = frozenset(("a", "an", "the"))
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
# VQA asks ten people; an answer that three of them gave is right.
NUM_PEOPLE = 10
ENOUGH_PEOPLE = 3
# The normal distribution's quantile for 95 %.
Z_95 = 1.959964


class Accuracy(BaseModel):
    """A share of right answers in 0..1, with the bounds of its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    num_questions: int


def normalise(answer: str) -> str:
    """Reduce an answer to what is compared.

    Lower case, no punctuation around words, no articles, digits for numbers up to ten: the VQA
    evaluation's rules (https://visualqa.org/evaluation.html) without its list of contractions.

    >>> normalise("The two dogs.")
    '2 dogs'
    """
    words = [word.strip(string.punctuation) for word in answer.casefold().split()]
    words = [word for word in words if word]
    # "A" may be the whole answer, as in multiple choice.
    kept = [word for word in words if word not in ARTICLES] or words
    return " ".join(NUMBER_WORDS.get(word, word) for word in kept)


def score(prediction: str, answers: Sequence[str]) -> float:
    """How right a prediction is, 0..1, given what counts as right.

    With ten answers, VQA accuracy: the mean, over the ten sets of nine people, of min(n / 3, 1),
    n being how many of them gave this answer. Otherwise 1 if any answer is the same, else 0.
    """
    given = normalise(prediction)
    same = sum(normalise(answer) == given for answer in answers)
    if len(answers) != NUM_PEOPLE:
        return float(same > 0)
    # `same` of the ten sets leave out someone who agrees.
    without = min((same - 1) / ENOUGH_PEOPLE, 1) if same else 0.0
    return (same * without + (NUM_PEOPLE - same) * min(same / ENOUGH_PEOPLE, 1)) / NUM_PEOPLE


def accuracy(scores: Sequence[float]) -> Accuracy:
    """The mean of scores with its Wilson interval.

    The interval takes questions as independent; for scores between 0 and 1 (VQA accuracy) it is
    wider than need be. Source: E. B. Wilson, Journal of the American Statistical Association 22
    (1927), 209-212.
    """
    assert scores
    n = len(scores)
    mean = sum(scores) / n
    shrunk = (mean + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    spread = Z_95 * math.sqrt(mean * (1 - mean) / n + Z_95**2 / (4 * n**2)) / (1 + Z_95**2 / n)
    return Accuracy(
        value=mean,
        # Rounding must not put the bounds of 0 and 1 on the wrong side.
        low=min(mean, max(0.0, shrunk - spread)),
        high=max(mean, min(1.0, shrunk + spread)),
        num_questions=n,
    )


def accuracy_by_type(scored: Iterable[tuple[str, float]]) -> dict[str, Accuracy]:
    """Accuracy of each question type, in alphabetical order, from (type, score)."""
    groups: dict[str, list[float]] = {}
    for kind, value in scored:
        groups.setdefault(kind, []).append(value)
    return {kind: accuracy(groups[kind]) for kind in sorted(groups)}
