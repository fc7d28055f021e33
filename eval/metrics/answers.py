"""Short answers, right if they are one that counts as right."""

import string
from collections.abc import Sequence

from eval.items import Answer, Item
from eval.metrics import vqa
from eval.metrics.measured import Measured, mean


def normalise(answer: str) -> str:
    """Reduce an answer to what is compared: as VQA does, without any punctuation around words.

    >>> normalise("'The two dogs.'")
    '2 dogs'
    """
    words = [word.strip(string.punctuation) for word in answer.split()]
    # "A" may be the whole answer, as in multiple choice.
    return vqa.normalise(" ".join(words)) or " ".join(words).strip().lower()


def score(prediction: str, answers: Sequence[str]) -> float:
    """How right a prediction is, 0..1, given what counts as right.

    With ten answers, VQA accuracy (eval/metrics/vqa.py). Otherwise 1 if any answer is the same
    after `normalise`, else 0.
    """
    if len(answers) == vqa.NUM_PEOPLE:
        return vqa.score(prediction, answers)
    given = normalise(prediction)
    return float(any(normalise(answer) == given for answer in answers))


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`: the mean of `score`."""
    pairs = zip(items, answers, strict=True)
    return mean("accuracy", [score(answer.value, item.answers) for item, answer in pairs])
