"""VQA accuracy as the official code computes it, quirks and all, and its relatives.

Of ten people's answers, `min(n / 3, 1)` averaged over the ten sets of nine people, n being how many
of a set gave the predicted answer.

- `vqa`: VQAv2, OK-VQA. https://github.com/GT-Vision-Lab/VQA,
  PythonEvaluationTools/vqaEvaluation/vqaEval.py at a013f0043c1e.
- `textvqa`: TextVQA. https://github.com/facebookresearch/mmf, pythia/tasks/processors.py and
  m4c_evaluators.py at c46b3b3391275b4181567db80943473a89ab98ab.
- `aokvqa`: A-OKVQA's direct answers. https://github.com/allenai/aokvqa,
  evaluation/eval_predictions.py.
"""

import re
from collections.abc import Sequence

from eval.items import Answer, Item
from eval.metrics.measured import Measured, mean
from vlm.errors import UserError

# VQA asks ten people; an answer that three of them gave is right.
NUM_PEOPLE = 10
ENOUGH_PEOPLE = 3

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Meant to spare periods after a digit, the pattern has `(?!<=` for `(?<!`, and so spares those
# before one only; the official call passes re.UNICODE as the count, which is 32.
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)
_COMMA_IN_NUMBER = re.compile(r"\d,\d")

# Words that lost an apostrophe. Where the full form is not the word with one more, it is given.
_LOST = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've "
    "o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll "
    "someone's something'd something'll that's there'd there're there's they'd they'll they're "
    "they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd "
    "you'll you're you've"
).split()
# Those with two: either of them may be lost.
_LOST_ONE_OF_TWO = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've "
    "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll "
    "you'd've"
).split()
# Somebody loses one; the rest is y'all and 'ow's'at.
_ODD = {
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _contractions() -> dict[str, str]:
    """The official table without its entries that begin with I: words are lower case there."""
    table = {word.replace("'", ""): word for word in _LOST} | _ODD
    for word in _LOST_ONE_OF_TWO:
        first, second, third = word.split("'")
        table[f"{first}{second}'{third}"] = word
        table[f"{first}'{second}{third}"] = word
    return table


_CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """Reduce an answer as the official code does.

    Punctuation becomes nothing or, between two words, a space; articles go; numbers up to ten
    become digits and lost apostrophes come back; everything is lower case.

    >>> normalise("The two well-known dogs.")
    '2 well known dogs'
    """
    return _restore_words(_without_punctuation(_one_line(answer)))


def score(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy, 0..1.

    Answers and prediction are normalised only where people did not all say the same: against ten
    times "cigarette", "The cigarette" is wrong.
    """
    given, said = _one_line(prediction), [_one_line(answer) for answer in answers]
    if len(set(said)) > 1:
        given, said = normalise(given), [normalise(answer) for answer in said]
    return leave_one_out(said.count(given), len(said))


def leave_one_out(num_same: int, num_people: int) -> float:
    """The mean of `min(n / 3, 1)` over the sets that leave out one of the people each."""
    # In `num_same` of the sets someone is missing who agrees.
    without = min((num_same - 1) / ENOUGH_PEOPLE, 1) if num_same else 0.0
    others = min(num_same / ENOUGH_PEOPLE, 1)
    return (num_same * without + (num_people - num_same) * others) / num_people


def textvqa_normalise(answer: str) -> str:
    """Reduce an answer as TextVQA's code does: as VQA's, after more of the same.

    Lower case first; commas and question marks go; a space comes before `'s`.
    """
    lowered = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _restore_words(_without_punctuation(_one_line(lowered)))


def textvqa_score(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA accuracy, 0..1: answers and prediction are always normalised."""
    said = [textvqa_normalise(answer) for answer in answers]
    return leave_one_out(said.count(textvqa_normalise(prediction)), len(said))


def aokvqa_score(prediction: str, answers: Sequence[str]) -> float:
    """A-OKVQA's accuracy, 0..1: `min(n / 3, 1)` of all ten; only case does not matter."""
    same = sum(answer.lower() == prediction.lower() for answer in answers)
    return min(same / ENOUGH_PEOPLE, 1.0)


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`VQA accuracy`."""
    _check(items)
    pairs = zip(items, answers, strict=True)
    return mean("VQA accuracy", [score(answer.value, item.answers) for item, answer in pairs])


def measure_textvqa(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`TextVQA accuracy`."""
    _check(items)
    scores = [
        textvqa_score(answer.value, item.answers)
        for item, answer in zip(items, answers, strict=True)
    ]
    return mean("TextVQA accuracy", scores)


def measure_aokvqa(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`direct answer accuracy`; what A-OKVQA marks as difficult to answer so is for its reader."""
    scores = [
        aokvqa_score(answer.value, item.answers)
        for item, answer in zip(items, answers, strict=True)
    ]
    return mean("direct answer accuracy", scores)


def _check(items: Sequence[Item]) -> None:
    for item in items:
        if len(item.answers) != NUM_PEOPLE:
            raise UserError(
                f"item {item.id!r} has {len(item.answers)} answers; VQA accuracy is of "
                f"{NUM_PEOPLE} people's"
            )


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    # A comma within a number makes all punctuation vanish instead of leaving spaces.
    number = _COMMA_IN_NUMBER.search(text) is not None
    changed = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if beside_space or number else " ")
    return _PERIOD.sub("", changed, count=_MOST_PERIODS)


def _restore_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)
