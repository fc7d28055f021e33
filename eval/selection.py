"""Which items a report shows: the worst answers, some right ones, and some drawn by chance."""

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmark import BenchmarkConfig
from eval.items import Answer, Item
from eval.scoring import Scored
from vlm.errors import UserError

MAX_WRONG, MAX_RIGHT, MAX_DRAWN = 24, 6, 12
SEED = 0


@dataclass(frozen=True)
class Selection:
    """Places of items in what was scored; the same for the same answers.

    wrong: those that are least right, the surest mistakes first where choices were scored; all
        types take turns, and no picture or group is shown twice.
    right: those that are most right, likewise.
    drawn: a sample of all, whatever was answered.
    """

    wrong: list[int]
    right: list[int]
    drawn: list[int]

    @staticmethod
    def of(scored: Scored) -> "Selection":
        """Choose among the answers to a benchmark's items."""
        order = list(range(len(scored.items)))
        random.Random(SEED).shuffle(order)
        scores = scored.headline.item_scores
        wrong = [index for index in order if scores[index] < 1]
        wrong.sort(key=lambda i: (scores[i], -margin(scored.items[i], scored.answers[i])))
        right = sorted((index for index in order if scores[index] > 0), key=lambda i: -scores[i])
        return Selection(
            in_turns(scored.items, wrong, MAX_WRONG),
            in_turns(scored.items, right, MAX_RIGHT),
            order[:MAX_DRAWN],
        )

    @property
    def all(self) -> set[int]:
        """Every place that is shown."""
        return {*self.wrong, *self.right, *self.drawn}


def margin(item: Item, answer: Answer) -> float:
    """By how much the chosen choice is likelier than a right one, in nats; 0 without choices."""
    if not item.correct or len(answer.logprobs) != len(item.choices):
        return 0.0
    return max(answer.logprobs) - max(answer.logprobs[index] for index in item.correct)


def in_turns(items: Sequence[Item], order: Iterable[int], limit: int) -> list[int]:
    """The first so many of some items, each type in turn, each picture or group once."""
    by_type: dict[str, list[int]] = {}
    seen: set[str] = set()
    for index in order:
        item = items[index]
        key = item.images[0].name if item.images else item.group or item.id
        if key not in seen:
            seen.add(key)
            by_type.setdefault(item.type, []).append(index)
    longest = max(map(len, by_type.values()), default=0)
    turns = [of[turn] for turn in range(longest) for of in by_type.values() if turn < len(of)]
    return turns[:limit]


def with_pictures(benchmark: BenchmarkConfig, data: Path, ids: Collection[str]) -> dict[str, Item]:
    """Items by their ids, read again: with pictures that can be read, where they are there."""
    try:
        return {item.id: item for item in _matching(benchmark.items(data), set(ids))}
    except UserError:  # predictions made elsewhere are scored without the pictures
        named = benchmark.items(data, names_only=True)
        return {item.id: item for item in _matching(named, set(ids))}


def _matching(items: Iterator[Item], ids: set[str]) -> Iterator[Item]:
    for item in items:
        if item.id in ids:
            ids.remove(item.id)
            yield item
            if not ids:
                return
