"""Short answers, right if they are one that counts as right."""

import string
from collections.abc import Sequence

from eval.items import Answer, Item
from eval.metrics.measured import Measured, mean

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


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`: the mean of `score`."""
    pairs = zip(items, answers, strict=True)
    return mean("accuracy", [score(answer.value, item.answers) for item, answer in pairs])
