"""Which item a prediction made elsewhere belongs to."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import PurePath

from eval.elsewhere import Given
from eval.items import Item
from vlm.errors import UserError

NUM_SHOWN = 5
# The orders of more types are too many to try.
MOST_TYPES = 5
_NUMBER_AT_END = re.compile(r"(\d+)$")

# From a prediction to the id of its item, None where it belongs to none.
Find = Callable[[Given], str | None]


@dataclass(frozen=True)
class Matched:
    """The predictions of items, by the items' ids; items without one are missing.

    how: by what they were matched, in words.
    """

    found: Mapping[str, Given]
    how: str

    def missing(self, items: Sequence[Item]) -> list[str]:
        """The ids of the items that have no prediction."""
        return [item.id for item in items if item.id not in self.found]


def match(items: Sequence[Item], given: Sequence[Given]) -> Matched:
    """Find the prediction of each item.

    By id; where ids are not the items', by picture and question; where rows name neither, by order,
    and then each question that is named must be the item's.

    Raises:
        UserError: predictions belong to no item, or two to one; counts and names them.
    """
    ways: Mapping[str, Callable[[Sequence[Item]], Find]] = {
        "id": _by_id,
        "id within a type": _by_short_id,
        "number of the picture": _by_picture_number,
        "picture and question": _by_picture_and_question,
    }
    failed = None
    for how, way in ways.items():
        try:
            found = _found(given, way(items))
        except UserError as error:  # another way may fit all; if none does, the first one's fault
            failed = failed or error
            continue
        if found is not None:
            return Matched(found, how)
    ordered = _by_order(items, given)
    if ordered is not None:
        return Matched(ordered, "order")
    if failed is not None:
        raise failed
    raise UserError(
        f"the predictions fit no items: they are called {some(g.id or g.where for g in given)}, "
        f"items {some(item.id for item in items)}. Needed are ids, or pictures and questions, or "
        f"{len(items)} predictions in the order of the items; these are {len(given)}"
    )


def some(names: Iterable[str]) -> str:
    """The first few names."""
    listed = list(names)
    more = ", ..." if len(listed) > NUM_SHOWN else ""
    return ", ".join(repr(name) for name in listed[:NUM_SHOWN]) + more


def _found(given: Sequence[Given], find: Find) -> dict[str, Given] | None:
    """The items' predictions, None if this way finds none at all."""
    places = [find(row) for row in given]
    if all(place is None for place in places):
        return None
    pairs = list(zip(given, places, strict=True))
    unknown = [row.id or row.where for row, place in pairs if place is None]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(given)} predictions belong to no item: {some(unknown)}"
        )
    twice = [str(place) for place, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} items have several predictions: {some(twice)}")
    return {str(place): row for row, place in pairs}


def _by_id(items: Sequence[Item]) -> Find:
    """By id; several answers to a problem, which all have its id, by their order."""
    known = {item.id: item for item in items}
    seen: Counter[str] = Counter()

    def find(row: Given) -> str | None:
        if row.id is None or row.id not in known:
            return None
        seen[row.id] += 1
        copy = f"{row.id}+{seen[row.id] - 1}"
        same = copy in known and replace(known[copy], id=row.id) == known[row.id]
        return copy if same else row.id

    return find


def _by_short_id(items: Sequence[Item]) -> Find:
    """By what follows `type/` in an item's id, with the type from the prediction's file or row."""
    types = {item.type for item in items}
    known: dict[tuple[str, str], str] = {}
    for item in items:
        head, slash, tail = item.id.partition("/")
        if slash and head == item.type:
            known[head, tail] = item.id
    alone = next(iter(types)) if len(types) == 1 else None

    def find(row: Given) -> str | None:
        kind = _type_of(row, types) or alone
        return known.get((kind, row.id)) if kind and row.id else None

    return find


def _by_picture_number(items: Sequence[Item]) -> Find:
    """COCO's results name the number of a picture, `391895` of COCO_val2014_000000391895.jpg."""
    numbers = defaultdict(list)
    for item in items:
        for name in {item.id, *(picture.name for picture in item.images[:1])}:
            number = _NUMBER_AT_END.search(PurePath(name).stem)
            if number:
                numbers[int(number.group(1))].append(item.id)
                break

    def find(row: Given) -> str | None:
        if row.id_field != "image_id" or row.id is None or not row.id.isdigit():
            return None
        found = numbers.get(int(row.id), [])
        return found[0] if len(found) == 1 else None

    return find


def _by_picture_and_question(items: Sequence[Item]) -> Find:
    """MME's results name both; pictures of different tasks may be called alike."""
    types = {item.type for item in items}
    shown = defaultdict(list)
    for item in items:
        if item.images:
            shown[PurePath(item.images[0].name).stem].append(item)
    used: set[str] = set()

    def find(row: Given) -> str | None:
        if row.picture is None or row.question is None:
            return None
        kind = _type_of(row, types)
        for item in shown.get(PurePath(row.picture).stem, []):
            if item.id in used or kind not in (None, item.type):
                continue
            if _same_question(row, item):
                used.add(item.id)
                return item.id
        return None

    return find


def _by_order(items: Sequence[Item], given: Sequence[Given]) -> dict[str, Given] | None:
    """By place, within types where files or rows tell them; None if no order fits."""
    types = sorted({item.type for item in items})
    by_type = {kind: [item for item in items if item.type == kind] for kind in types}
    kinds = [_type_of(row, types) for row in given]
    if len(types) > 1 and all(kind is not None for kind in kinds):
        ordered = [item for kind in dict.fromkeys(kinds) for item in by_type[str(kind)]]
        # Rows of a type stay in their order.
        place = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        rows = sorted(zip(kinds, given, strict=True), key=lambda pair: place[pair[0]])
        found = _aligned(ordered, [row for _, row in rows])
        if found is not None:
            return found
    orders: list[Sequence[Item]] = [items, *by_type.values()]
    if 1 < len(types) <= MOST_TYPES:
        orders += [[i for kind in order for i in by_type[kind]] for order in permutations(types)]
    fitting = (found for order in orders if (found := _aligned(order, given)) is not None)
    return next(fitting, None)


def _aligned(items: Sequence[Item], given: Sequence[Given]) -> dict[str, Given] | None:
    """Items and predictions one by one; None if their number or a question differs."""
    if len(items) != len(given):
        return None
    pairs = list(zip(items, given, strict=True))
    if not all(_same_question(row, item) for item, row in pairs):
        return None
    return {item.id: row for item, row in pairs}


def _type_of(row: Given, types: Iterable[str]) -> str | None:
    """The type that a prediction's row, file or folder is called after."""
    exact = [kind for kind in types for part in row.part if part.casefold() == kind.casefold()]
    if exact:
        return exact[0]
    held = {k for k in types for part in row.part if k.casefold() in part.casefold()}
    return held.pop() if len(held) == 1 else None


def _same_question(row: Given, item: Item) -> bool:
    """Whether they agree; after a line end, or after the question, instructions may follow.

    A row without question is no contradiction.
    """
    if row.question is None:
        return True
    asked = row.question.replace("<image>", "").strip()
    own = _plain(item.question)
    forms = {_plain(asked), _plain(asked.split("\n")[0])}
    return any(form.startswith(own) or own.startswith(form) for form in forms if form)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
