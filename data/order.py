"""Which sample stands at which position: a pure function of seed, epoch and position.

Shards are shuffled, then samples within a window of several shards. Sources either join into one
sequence, which shows every sample once an epoch, or are mixed by weight, each with epochs of its
own. Consecutive samples form pools, and pools are dealt to streams in turn. Nothing is read here.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from data.config import DataConfig

GUESSED_ROW_TOKENS = 128  # sizes the pools of batches by tokens: only their variety depends on it


class Place(NamedTuple):
    """Where a sample lies, and in which epoch of its source it is drawn."""

    epoch: int
    source: int
    shard: int
    sample: int


@dataclass(frozen=True)
class Pool:
    """Samples that are read, encoded and cut into batches together.

    number: counts on from epoch to epoch.
    label: seeds the order of its batches; the pools of a round, one of each stream, share one.
    """

    number: int
    label: str
    places: list[Place]


class ShuffledShards:
    """The samples of some shards in an endless sequence: every epoch shows each of them once.

    Args:
        shards: source, shard and number of samples of each.
        label: what the order depends on beside the epoch.
        window_shards: so many shards are shuffled into each other.
        shuffle: False keeps the given order.
    """

    def __init__(
        self,
        shards: Sequence[tuple[int, int, int]],
        label: str,
        window_shards: int,
        shuffle: bool = True,
    ) -> None:
        self.shards = shards
        self.num_samples = sum(num_samples for _, _, num_samples in shards)
        self.label = label
        self.window_shards = window_shards
        self.shuffle = shuffle
        # Pools follow one another, so two windows and two epochs are all that is looked at.
        self._epoch = lru_cache(2)(self._shuffle_epoch)
        self._window = lru_cache(2)(self._shuffle_window)

    def places(self, start: int, stop: int) -> Iterator[Place]:
        """Yield the places of the positions from `start` to before `stop`, in any epoch."""
        while start < stop:
            epoch, position = divmod(start, self.num_samples)
            first_shards, first_samples = self._epoch(epoch)[1:]
            window = bisect_right(first_samples, position) - 1
            places = self._window(epoch, first_shards[window])
            skipped = position - first_samples[window]
            taken = places[skipped : skipped + stop - start]
            yield from taken
            start += len(taken)

    def _shuffle_epoch(self, epoch: int) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
        """The shards in order; the first shard of each window; the samples before it."""
        shards = list(self.shards)
        if self.shuffle:
            random.Random(f"{self.label}/{epoch}/shards").shuffle(shards)
        samples_before = [0, *accumulate(num_samples for _, _, num_samples in shards)]
        first_shards = list(range(0, len(shards), self.window_shards))
        return shards, first_shards, [samples_before[first] for first in first_shards]

    def _shuffle_window(self, epoch: int, first_shard: int) -> list[Place]:
        shards = self._epoch(epoch)[0][first_shard : first_shard + self.window_shards]
        places = [
            Place(epoch, source, shard, sample)
            for source, shard, num_samples in shards
            for sample in range(num_samples)
        ]
        if self.shuffle:
            random.Random(f"{self.label}/{epoch}/window{first_shard}").shuffle(places)
        return places


class Mixture:
    """Which source gives the sample at each position, by their shares.

    The first source is set against all others together, which are mixed in the same way. Each of
    these choices is exact: of any n samples to choose from, the first gets floor(n * share). So
    after n samples a source's count is less than the number of sources away from n times its share,
    however large n is, and any position is computed without those before it.

    Args:
        weights: positive, of any sum.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        remaining = [sum(weights[place:]) for place in range(len(weights))]
        # The last source takes what is left to it: a share of 1.
        self.shares = [weight / rest for weight, rest in zip(weights, remaining, strict=True)]

    def counts(self, num_samples: int) -> list[int]:
        """How many of the first `num_samples` come from each source."""
        counts = []
        left = num_samples
        for share in self.shares:
            taken = left * share.numerator // share.denominator
            counts.append(taken)
            left -= taken
        return counts

    def sources(self, start: int, stop: int) -> Iterator[int]:
        """Yield the source of each position from `start` to before `stop`."""
        before = self.counts(start)
        for position in range(start, stop):
            after = self.counts(position + 1)
            # One sample more changes one count: each choice keeps it or hands it on.
            yield next(
                i for i, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1
            )
            before = after


class SampleOrder:
    """The pools of a run, numbered through all epochs, and how they are dealt to streams.

    A stream is an endless sequence of batches; each step takes one batch of every stream. So what
    a step consists of depends on their number and not on which rank reads which of them.

    Args:
        counts: for each source the samples of each of its shards.
        shares: the sources' shares of the samples; None joins the sources, so that every sample
            comes once an epoch.
        num_streams: batches of a step, over all ranks.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]],
        config: DataConfig,
        seed: int,
        shuffle: bool = True,
        shares: Sequence[Fraction] | None = None,
        num_streams: int = 1,
    ) -> None:
        sources = [
            [(source, shard, num_samples) for shard, num_samples in enumerate(shards)]
            for source, shards in enumerate(counts)
        ]
        self.seed = seed
        self.num_streams = num_streams
        self.mixture = None if shares is None else Mixture(shares)
        if shares is None:
            joined = [shard for shards in sources for shard in shards]
            self.parts = [ShuffledShards(joined, f"{seed}", config.shuffle_shards, shuffle)]
        else:
            self.parts = [
                ShuffledShards(shards, f"{seed}/source{i}", config.shuffle_shards, shuffle)
                for i, shards in enumerate(sources)
            ]
        self.num_samples = sum(part.num_samples for part in self.parts)
        tokens = config.batch_tokens or 0
        self.batch_samples = config.batch_samples or max(1, tokens // GUESSED_ROW_TOKENS)
        self.pool_samples = self.batch_samples * config.pool_batches
        self.rounds_per_epoch = -(-self.num_samples // (self.pool_samples * num_streams))

    @property
    def pools_per_epoch(self) -> int:
        """Pools in which every sample of joined sources comes once; some may be empty."""
        return self.rounds_per_epoch * self.num_streams

    def pool(self, number: int) -> Pool:
        """Return a pool of the run."""
        epoch, turn = divmod(number // self.num_streams, self.rounds_per_epoch)
        return Pool(number, f"{self.seed}/{epoch}/pool{turn}", list(self._places(number)))

    def _places(self, number: int) -> Iterator[Place]:
        if self.mixture is None:
            yield from self.parts[0].places(*self._range(number))
            return
        start, stop = number * self.pool_samples, (number + 1) * self.pool_samples
        ranges = zip(self.mixture.counts(start), self.mixture.counts(stop), strict=True)
        drawn = [part.places(*limits) for part, limits in zip(self.parts, ranges, strict=True)]
        for source in self.mixture.sources(start, stop):
            yield next(drawn[source])

    def _range(self, number: int) -> tuple[int, int]:
        """The positions of a pool; what is left for an epoch's last round is divided by batches."""
        turn, stream = divmod(number, self.num_streams)
        epoch, turn = divmod(turn, self.rounds_per_epoch)
        before = turn * self.num_streams * self.pool_samples
        left = min(self.num_streams * self.pool_samples, self.num_samples - before)
        batches = -(-left // self.batch_samples)
        limits = [batches * part // self.num_streams for part in (stream, stream + 1)]
        first = epoch * self.num_samples + before
        start, stop = (first + min(left, limit * self.batch_samples) for limit in limits)
        return start, stop
