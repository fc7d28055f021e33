"""BBQ: questions about two people, with and without what would answer them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import Item
from vlm.errors import UserError

NUM_ANSWERS = 3
UNKNOWN = "unknown"
# How the questions' third answer is worded, each time one of these.
UNKNOWN_WORDS = (
    "Unknown", "Cannot answer", "Can't be determined", "Cannot be determined", "Can't answer",
    "Not known", "Not enough info", "Not enough information", "Not answerable", "Undetermined",
)  # fmt: skip
# Answers' groups spell what `stereotyped_groups` spells otherwise.
_SPELLINGS = {
    "lowses": "low ses",
    "highses": "high ses",
    "man": "m",
    "boy": "m",
    "woman": "f",
    "girl": "f",
}


class BbqOptions(Options):
    """every_unknown: all wordings of "unknown" are choices beside the two people, as in lm-eval."""

    every_unknown: bool = False


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions of all categories, which are their types.

    `facts`: `ambiguous`, whether the context leaves the answer open; `unknown`, the indices of
    answers that say so; `biased`, that of the answer which a stereotype would give (the stereotyped
    group in a negative question, the other one in its counterpart), None where the groups do not
    say. The authors' table `metadata` (its `target_loc`), where it is there, says so instead.

    Raises:
        UserError: a question without an answer for "unknown"; names it.
    """
    every_unknown = read_options(BbqOptions, options).every_unknown
    targets = None
    if files.has("metadata"):
        targets = {
            (row["category"], str(row["example_id"])): row["target_loc"]
            for _, row in files.rows("metadata")
        }
    for where, row in files.rows("questions"):
        answers = [row[f"ans{index}"] for index in range(NUM_ANSWERS)]
        groups = [row["answer_info"][f"ans{index}"] for index in range(NUM_ANSWERS)]
        unknown = [index for index, group in enumerate(groups) if group[-1] == UNKNOWN]
        if len(unknown) != 1:
            raise UserError(f"{where} has {len(unknown)} answers for {UNKNOWN!r}, needed: one")
        category, example = row["category"], str(row["example_id"])
        if targets is None:
            biased = _biased(row, groups, unknown[0])
        else:
            target = targets.get((category, example), "")
            biased = int(float(target)) if target not in ("", "NA") else None
        item = Item(
            id=f"{category}/{example}",
            question=row["question"],
            choices=tuple(answers),
            correct=(int(row["label"]),),
            type=category,
            fields={"context": row["context"]},
            facts={
                "ambiguous": row["context_condition"] == "ambig",
                "unknown": tuple(unknown),
                "biased": biased,
            },
        )
        yield with_every_unknown(item) if every_unknown else item


def with_every_unknown(item: Item) -> Item:
    """The item with its people first, then every wording of "unknown"."""
    people = [index for index in range(NUM_ANSWERS) if index not in item.facts["unknown"]]
    unknown = tuple(range(len(people), len(people) + len(UNKNOWN_WORDS)))
    place = {index: new for new, index in enumerate(people)}
    (label,) = item.correct
    return replace(
        item,
        choices=(*(item.choices[index] for index in people), *UNKNOWN_WORDS),
        correct=(place[label],) if label in place else unknown,
        facts={**item.facts, "unknown": unknown, "biased": place.get(item.facts["biased"])},
    )


def _biased(row: Mapping[str, Any], groups: list[list[str]], unknown: int) -> int | None:
    """The answer that a stereotype would give, as section 4 of the paper defines it."""
    stereotyped = {_spell(group) for group in row["additional_metadata"]["stereotyped_groups"]}
    people = [index for index in range(NUM_ANSWERS) if index != unknown]
    targets = [index for index in people if stereotyped & _names(groups[index])]
    if len(targets) != 1:
        return None
    others = [index for index in people if index not in targets]
    return targets[0] if row["question_polarity"] == "neg" else others[0]


def _names(groups: list[str]) -> set[str]:
    """What a person's groups are called: the whole, and the parts of `F-Black`."""
    whole = {_spell(group) for group in groups}
    parts = {
        _spell(part)
        for group in groups
        for mark in ("M-", "F-", "lowSES-", "highSES-")
        if group.startswith(mark)
        for part in (mark[:-1], group.removeprefix(mark))
    }
    return whole | parts


def _spell(group: str) -> str:
    plain = group.casefold().strip()
    return _SPELLINGS.get(plain, plain)
