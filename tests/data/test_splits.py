import random
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest

from data.documents import Entry
from data.pictures import Pictures
from data.schema import Reject, Sample
from data.sources import Source
from data.splits import choose_parts, divide, parse_shares, read_split
from vlm.errors import UserError

SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}


class Names:
    """A place in which a picture's bytes are its name up to a `=`; what begins with `-` is gone."""

    path = Path("names")

    def find(self, name: str) -> bytes | None:
        return None if name.startswith("-") else name.partition("=")[0].encode()


def source(*pictures: tuple[str, ...]) -> Source:
    listed = [
        Entry(f"{index}", names, partial(Sample.parse, "{}"))
        for index, names in enumerate(pictures)
    ]
    return Source("chat", listed, [Reject("row", "no text")], Pictures([Names()]), ())


def shown(part: Source) -> set[str]:
    return {name.partition("=")[0] for entry in part.entries for name in entry.pictures}


def test_parts_share_no_picture_and_lose_no_sample() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        names = [f"{rng.randrange(30)}={rng.randrange(3)}" for _ in range(60)] + ["-gone"]
        listed = [tuple(rng.choices(names, k=rng.choice([0, 1, 1, 1, 2]))) for _ in range(60)]
        whole = source(*listed)
        parts = divide(whole, SHARES)
        assert list(parts) == list(SHARES)
        keys = [entry.key for part in parts.values() for entry in part.entries]
        assert sorted(keys, key=int) == [entry.key for entry in whole.entries]
        assert [part.rejects for part in parts.values()] == [whole.rejects, [], []]
        for one, two in combinations(parts.values(), 2):
            assert shown(one).isdisjoint(shown(two))


def test_shares_are_met_and_a_picture_stays_in_its_part_when_others_come() -> None:
    listed = [(f"p{index}",) for index in range(2000)]
    parts = divide(source(*listed), SHARES)
    # Three standard deviations of a share of 0.7 of 2,000 are 0.031.
    assert all(abs(len(parts[name].entries) / 2000 - SHARES[name]) < 0.035 for name in SHARES)
    fewer = divide(source(*listed[1000:]), SHARES)
    assert all(shown(fewer[name]) <= shown(parts[name]) for name in SHARES)


@pytest.mark.parametrize(
    "text", ["train=0.9", "train=0.9,train=0.1", "a=0.5,b=x", "../a=0.5,b=0.5", "a=1,b=0", "a,b"]
)
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--split"):
        parse_shares(text)


def test_split_names_and_shares_may_be_given_together_once_each() -> None:
    assert read_split([]) == (None, {})
    assert read_split(["val", "train=0.9,test=0.1"]) == ("val", {"train": 0.9, "test": 0.1})
    for wrong in (["a", "b"], ["a=0.5,b=0.5", "c=0.5,d=0.5"]):
        with pytest.raises(UserError, match="at most one NAME"):
            read_split(wrong)
    with pytest.raises(UserError, match="give one of them"):
        choose_parts(source(("a",)), 1, SHARES)
    assert list(choose_parts(source(("a",)), None, {})) == [""]
