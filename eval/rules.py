"""How a written answer is read: from what a model wrote to what a metric compares."""

import re
from collections.abc import Callable, Sequence

from eval import official_rules
from eval.items import LETTERS, Answer, Item

# "(B)", "B.", "B)", "B:", or "B" alone; not the article in "A dog".
_LETTER = re.compile(r"\(([A-Z])\)|^\W*([A-Z])(?:[.):,]|\s*$)", re.MULTILINE)
_SAID_LETTER = re.compile(r"\b(?:answer|option|choice)\b\W*(?:is)?\W*\(?([A-Z])\b")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_CODE = re.compile(r"```(?:[a-zA-Z0-9_+-]*)\n(.*?)(?:```|\Z)", re.DOTALL)


def read_answer(rule: str, item: Item, text: str, follow_ups: Sequence[str] = ()) -> Answer:
    """Read a written answer by the rule of a benchmark.

    text: as it is, without outer whitespace.
    first_line: its first line that is not empty.
    yes_no: `yes` or `no`, whichever word comes first; the text where neither does.
    letter: a choice by its letter.
    choice: a choice by its letter, else by its words.
    number: the last number, without thousands separators.
    code: the first fenced block, else all of it as it is, for indentation counts.
    pope, mme, scienceqa, mmbench, mmmu: as the benchmark's own script (eval/official_rules.py).

    An item without choices is read as a text by the rules for choices (MMMU's open questions).
    """
    choice = None
    if rule in _TEXT_RULES:
        value = _TEXT_RULES[rule](text)
    elif item.choices:
        choice = _CHOICE_RULES[rule](item, text)
        value = "" if choice is None else item.choices[choice]
    else:
        value = text.strip()
    return Answer(text=text, value=value, choice=choice, follow_ups=tuple(follow_ups))


def read_yes_no(text: str) -> str:
    """`yes` or `no`, the first of these words in a text; the text where it has neither."""
    found = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    return found.group(1).lower() if found else text.strip()


def read_letter(item: Item, text: str) -> int | None:
    """The index of the choice whose letter a text gives: `B`, `(B)`, `B.`, `the answer is B`."""
    text = text.strip()
    allowed = LETTERS[: len(item.choices)]
    for pattern in (_SAID_LETTER, _LETTER):
        for match in pattern.finditer(text):
            letter = next(group for group in match.groups() if group)
            if letter in allowed:
                return allowed.index(letter)
    return None


def read_choice(item: Item, text: str) -> int | None:
    """The choice that a text names: by letter, by being it, or by holding it and no other."""
    plain = text.strip().rstrip(".").casefold()
    same = [i for i, choice in enumerate(item.choices) if choice.rstrip(".").casefold() == plain]
    if len(same) == 1:
        return same[0]
    letter = read_letter(item, text)
    if letter is not None:
        return letter
    held = [
        i
        for i, choice in enumerate(item.choices)
        if re.search(rf"(?<!\w){re.escape(choice.casefold())}(?!\w)", text.casefold())
    ]
    return held[0] if len(held) == 1 else None


def read_number(text: str) -> str:
    """The last number of a text without `$` and thousands separators; empty if it has none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").replace("$", "") if found else ""


def read_code(text: str) -> str:
    """The first fenced block of a text, or all of it."""
    found = _CODE.search(text)
    return found.group(1) if found else text


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


_TEXT_RULES: dict[str, Callable[[str], str]] = {
    "text": str.strip,
    "first_line": _first_line,
    "yes_no": read_yes_no,
    "number": read_number,
    "code": read_code,
    "pope": official_rules.pope,
    "mme": official_rules.mme,
}
_CHOICE_RULES: dict[str, Callable[[Item, str], int | None]] = {
    "letter": read_letter,
    "choice": read_choice,
    "scienceqa": official_rules.scienceqa,
    "mmbench": official_rules.mmbench,
    "mmmu": official_rules.mmmu,
}
