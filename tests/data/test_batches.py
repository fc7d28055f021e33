"""Packing and cutting, as properties of random sizes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from data.batches import (
    cut_batches,
    group_samples,
    pack_sequences,
    padded_tokens,
)
from data.config import DataConfig


@dataclass(frozen=True)
class Sizes:
    row_tokens: tuple[int, ...]
    num_tiles: int = 0


def random_samples(rng: random.Random, longest: int = 60) -> list[Sizes]:
    return [
        Sizes(
            tuple(rng.randint(1, longest) for _ in range(rng.choice([1, 1, 1, 4]))),
            rng.choice([0, 0, 1, 4, 9]),
        )
        for _ in range(rng.randint(1, 40))
    ]


def seeds() -> Iterator[random.Random]:
    for seed in range(150):
        yield random.Random(seed)


def tokens_of(samples: list[Sizes], sequence_tokens: int | None = None) -> int:
    return padded_tokens([n for sample in samples for n in sample.row_tokens], sequence_tokens)


def test_every_document_is_packed_once_and_no_sequence_overflows() -> None:
    for rng in seeds():
        lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 50))]
        sequences = pack_sequences(lengths, 60)
        assert sorted(index for sequence in sequences for index in sequence) == list(
            range(len(lengths))
        )
        filled = [sum(lengths[index] for index in sequence) for sequence in sequences]
        assert max(filled) <= 60
        # First fit: no two sequences could be one.
        assert len(filled) == 1 or sum(sorted(filled)[:2]) > 60


def test_packing_a_known_case_puts_the_longest_first() -> None:
    assert pack_sequences([2, 7, 5, 3, 4, 8], 10) == [[5, 0], [1, 3], [2, 4]]
    assert padded_tokens([2, 7, 5, 3, 4, 8], 10) == 30
    assert padded_tokens([2, 7, 5, 3, 4, 8]) == 48


def test_a_document_longer_than_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="11 tokens do not fit into a sequence of 10"):
        pack_sequences([3, 11], 10)


@pytest.mark.parametrize("sequence_tokens", [None, 60])
def test_batches_keep_every_budget_and_are_as_large_as_budgets_allow(
    sequence_tokens: int | None,
) -> None:
    for rng in seeds():
        samples = random_samples(rng)
        by_samples = rng.random() < 0.3
        most = rng.randint(1, 6) if by_samples else None
        tokens = None if by_samples else rng.randint(60, 400)
        tiles = rng.choice([None, 9, 20])

        def fits(
            batch: list[Sizes],
            most: int | None = most,
            tokens: int | None = tokens,
            tiles: int | None = tiles,
        ) -> bool:
            return (
                (most is None or len(batch) <= most)
                and (tokens is None or tokens_of(batch, sequence_tokens) <= tokens)
                and (tiles is None or sum(sample.num_tiles for sample in batch) <= tiles)
            )

        batches = cut_batches(samples, most, tokens, tiles, sequence_tokens)
        assert [sample for batch in batches for sample in batch] == samples
        assert all(fits(batch) or len(batch) == 1 for batch in batches)
        assert not any(fits([*first, second[0]]) for first, second in pairwise(batches))


def test_batches_by_tokens_count_padding_and_every_row_of_a_sample() -> None:
    samples = [
        Sizes((2,)),
        Sizes((2, 1, 2)),
        Sizes((3,)),
        Sizes((3, 3)),
        Sizes((9, 9)),
        Sizes((4,)),
    ]
    batches = cut_batches(samples, batch_tokens=12)
    assert [tokens_of(batch) for batch in batches] == [8, 9, 18, 4]
    packed = cut_batches(samples, batch_tokens=12, sequence_tokens=9)
    assert [tokens_of(batch, 9) for batch in packed] == [7, 9, 18, 4]


def config(**settings: Any) -> DataConfig:
    return DataConfig.model_validate({"train": ["."], "max_tokens": 60, **settings})


def test_samples_of_like_work_share_a_batch_and_packed_ones_keep_their_order() -> None:
    samples = random_samples(random.Random(3))
    flat = [s for batch in group_samples(samples, config(batch_tokens=200)) for s in batch]
    work = [len(sample.row_tokens) * max(sample.row_tokens) for sample in flat]
    assert work == sorted(work) and flat != samples
    packed = group_samples(samples, config(batch_tokens=200, packing=True, batch_tiles=20))
    assert [s for batch in packed for s in batch] == samples
    assert all(tokens_of(b, 60) <= 200 or len(b) == 1 for b in packed)
    assert all(sum(s.num_tiles for s in b) <= 20 for b in packed)


def test_packing_pads_less_than_sorting_by_length() -> None:
    rng = random.Random(0)
    samples = [Sizes((rng.choice([8, 12, 30]) + rng.randint(0, 8),)) for _ in range(400)]
    for packing, most in ((False, 0.1), (True, 0.05)):
        settings = config(batch_tokens=960, max_tokens=240, packing=packing)
        batches = group_samples(samples, settings)
        used = sum(sum(sample.row_tokens) for sample in samples)
        padded = sum(tokens_of(batch, 240 if packing else None) for batch in batches)
        assert 1 - used / padded < most
