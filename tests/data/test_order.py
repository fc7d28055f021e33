"""Every sample comes once an epoch, in an order that nothing but seed and position decides."""

from collections import Counter
from fractions import Fraction
from itertools import chain, islice
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from data.config import DataConfig
from data.order import Mixture, Place, SampleOrder, ShuffledShards

SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=8)
SOURCES = st.lists(SHARDS, min_size=1, max_size=4)
WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


def make_order(counts: list[list[int]], seed: int = 0, **settings: Any) -> SampleOrder:
    names = ("shuffle", "shares", "num_streams")
    chosen = {name: settings.pop(name) for name in names if name in settings}
    defaults = {"batch_samples": 2, "pool_batches": 3, "shuffle_shards": 2, "max_tokens": 9}
    config = DataConfig.model_validate({**defaults, "train": ["unread"], **settings})
    return SampleOrder(counts, config, seed, **chosen)


def epoch_places(order: SampleOrder, epoch: int) -> list[Place]:
    first = epoch * order.pools_per_epoch
    numbers = range(first, first + order.pools_per_epoch)
    return list(chain.from_iterable(order.pool(number).places for number in numbers))


def all_samples(counts: list[list[int]]) -> Counter[tuple[int, int, int]]:
    return Counter(
        (source, shard, sample)
        for source, shards in enumerate(counts)
        for shard, num_samples in enumerate(shards)
        for sample in range(num_samples)
    )


@given(SOURCES, st.integers(0, 3), st.integers(1, 7), st.integers(1, 9), st.integers(0, 5))
def test_every_sample_comes_exactly_once_an_epoch(
    counts: list[list[int]], epoch: int, streams: int, window: int, seed: int
) -> None:
    order = make_order(counts, seed, num_streams=streams, shuffle_shards=window)
    places = epoch_places(order, epoch)
    assert {place.epoch for place in places} == {epoch}
    assert Counter(place[1:] for place in places) == all_samples(counts)


@given(SOURCES, st.integers(0, 5), st.integers(1, 9))
def test_unshuffled_samples_come_in_the_order_of_their_shards(
    counts: list[list[int]], epoch: int, streams: int
) -> None:
    order = make_order(counts, shuffle=False, num_streams=streams)
    places = [place[1:] for place in epoch_places(order, epoch)]
    assert places == sorted(places)


@given(SHARDS, st.integers(1, 4), st.data())
def test_any_part_of_the_sequence_is_computed_without_what_comes_before(
    sizes: list[int], window: int, data: st.DataObject
) -> None:
    shards = [(0, shard, size) for shard, size in enumerate(sizes)]
    start = data.draw(st.integers(0, 3 * sum(sizes)))
    length = data.draw(st.integers(0, 2 * sum(sizes)))
    whole = list(ShuffledShards(shards, "0", window).places(0, start + length))
    part = list(ShuffledShards(shards, "0", window).places(start, start + length))
    assert part == whole[start:]


def test_epochs_seeds_and_windows_differ_in_order() -> None:
    counts = [[10] * 6]
    first = epoch_places(make_order(counts), 0)
    assert first == epoch_places(make_order(counts), 0)
    orders = [
        first,
        [place._replace(epoch=0) for place in epoch_places(make_order(counts), 1)],
        epoch_places(make_order(counts, seed=1), 0),
    ]
    assert len({tuple(order) for order in orders}) == 3
    # Two shards are shuffled into each other, and no others.
    for start in range(0, 60, 20):
        assert len({place.shard for place in first[start : start + 20]}) == 2
        assert [place.shard for place in first[start : start + 20]] != sorted(
            place.shard for place in first[start : start + 20]
        )


@given(WEIGHTS, st.integers(0, 10**12))
def test_a_mixture_never_drifts_from_its_weights(weights: list[float], position: int) -> None:
    exact = [Fraction(weight) for weight in weights]
    mixture = Mixture(exact)
    counts = mixture.counts(position)
    assert sum(counts) == position
    for weight, count in zip(exact, counts, strict=True):
        # Each choice before this source's rounds once; the source's own does too.
        assert abs(count - position * weight / sum(exact)) < max(1, len(weights) - 1)
    drawn = Counter(mixture.sources(position, position + 50))
    after = mixture.counts(position + 50)
    assert [drawn[source] for source in range(len(weights))] == [
        later - count for later, count in zip(after, counts, strict=True)
    ]


@given(SOURCES, st.data(), st.integers(1, 5), st.integers(0, 40))
def test_in_a_mixture_each_source_has_epochs_of_its_own(
    counts: list[list[int]], data: st.DataObject, streams: int, resumed_at: int
) -> None:
    weights = st.lists(st.integers(1, 50), min_size=len(counts), max_size=len(counts))
    shares = [Fraction(weight) for weight in data.draw(weights)]
    order = make_order(counts, shares=shares, num_streams=streams)
    numbers = range(resumed_at + 40)
    places = [place for number in numbers for place in order.pool(number).places]
    again = make_order(counts, shares=shares, num_streams=streams)
    late = [place for number in numbers[resumed_at:] for place in again.pool(number).places]
    assert places[len(places) - len(late) :] == late
    for source, shards in enumerate(counts):
        drawn = [place for place in places if place.source == source]
        whole_epochs = len(drawn) // sum(shards)
        for epoch in range(whole_epochs):
            one = drawn[epoch * sum(shards) : (epoch + 1) * sum(shards)]
            assert {place.epoch for place in one} == {epoch}
            assert len(set(one)) == sum(shards)


@given(SOURCES, st.integers(1, 8))
def test_pools_that_are_worked_on_together_share_the_order_of_their_batches(
    counts: list[list[int]], streams: int
) -> None:
    order = make_order(counts, num_streams=streams)
    labels = [order.pool(number).label for number in range(6 * streams)]
    rounds = [set(labels[start : start + streams]) for start in range(0, 6 * streams, streams)]
    assert all(len(together) == 1 for together in rounds)
    assert len(set.union(*rounds)) == 6


@given(SHARDS, st.integers(1, 6))
def test_the_streams_share_each_round_by_whole_batches(sizes: list[int], streams: int) -> None:
    order = make_order([sizes], num_streams=streams)
    for number in range(0, order.pools_per_epoch, streams):
        parts = [len(order.pool(number + stream).places) for stream in range(streams)]
        batches = [-(-part // order.batch_samples) for part in parts]
        assert max(batches) - min(batches) <= 1
        odd = [part for part in parts if part % order.batch_samples]
        assert len(odd) <= 1  # the last batch of the epoch


def test_places_far_out_cost_what_those_at_the_beginning_do() -> None:
    order = make_order([[1000] * 100], shuffle_shards=8, batch_samples=32)
    far = 10**9
    places = list(islice(order.pool(far).places, 5))
    assert places[0].epoch == far // order.pools_per_epoch
