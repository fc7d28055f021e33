"""Batches in the order of `data.order`, read and encoded by worker processes if there are any.

A step takes one batch of every stream. Streams belong to ranks in turn, so what a step consists of
depends neither on the number of ranks nor on that of workers, and nothing is read on two ranks.
"""

import heapq
import itertools
import random
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar

import torch.utils.data

from data.batches import RowT, group_samples
from data.config import DataConfig
from data.order import Place, Pool, SampleOrder
from data.schema import RawSample, Reject
from data.shards import ShardSet
from data.storage import StorageError
from vlm.errors import UserError

BatchT = TypeVar("BatchT")
KEPT_REJECTS = 1000  # of those that a loader remembers; all are counted


@dataclass(frozen=True)
class LoaderState:
    """Where each stream stands: the pool of its next batch, and the batch's place in the pool."""

    streams: tuple[tuple[int, int], ...]

    @staticmethod
    def start(num_streams: int) -> "LoaderState":
        """The beginning of a run."""
        return LoaderState(tuple((stream, 0) for stream in range(num_streams)))

    @staticmethod
    def merge(states: Sequence["LoaderState"]) -> "LoaderState":
        """Join the states of all ranks, in their order, each of which knows its own streams."""
        ranks = len(states)
        streams = range(len(states[0].streams))
        return LoaderState(tuple(states[stream % ranks].streams[stream] for stream in streams))

    @staticmethod
    def parse(content: Any) -> "LoaderState":
        """Make a state out of what `dataclasses.asdict` made of one, JSON or not.

        Raises:
            UserError: it is none.
        """
        try:
            streams = tuple((int(pool), int(batch)) for pool, batch in content["streams"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"no position of a data loader: {content!r}") from error
        return LoaderState(streams)


@dataclass(frozen=True)
class PoolBatches(Generic[BatchT]):
    """The batches of one pool, and the samples that were rejected.

    failure: why there are no batches, where a storage did not give the samples.
    """

    number: int
    batches: list[BatchT]
    rejects: list[Reject]
    num_samples: int
    failure: str | None = None


class PoolReader(torch.utils.data.Dataset[PoolBatches[BatchT]], Generic[RowT, BatchT]):
    """Read a pool's samples, encode them and cut them into batches; runs in the workers."""

    def __init__(
        self,
        sources: Sequence[ShardSet],
        config: DataConfig,
        encode: Callable[[RawSample, random.Random], RowT],
        collate: Callable[[Sequence[RowT]], BatchT],
        seed: int,
        shuffle: bool,
    ) -> None:
        self.sources = sources
        self.config = config
        self.encode = encode
        self.collate = collate
        self.seed = seed
        self.shuffle = shuffle

    def __getitem__(self, pool: Pool) -> PoolBatches[BatchT]:
        rows: list[RowT] = []
        rejects: list[Reject] = []
        try:
            samples = self._read(pool.places)
        except StorageError as error:  # what a worker raises comes with a page of its own calls
            return PoolBatches(pool.number, [], [], len(pool.places), str(error))
        for place, raw in zip(pool.places, samples, strict=True):
            if isinstance(raw, Reject):
                rejects.append(raw)
                continue
            try:
                rng = random.Random(f"{self.seed}/{place.epoch}/{raw.key}")
                rows.append(self.encode(raw, rng))
            except UserError as error:
                source = self.sources[place.source]
                rejects.append(Reject(raw.key, str(error), source.names[place.shard]))
        groups = group_samples(rows, self.config)
        if self.shuffle:
            random.Random(pool.label).shuffle(groups)
        batches = [self.collate(group) for group in groups]
        return PoolBatches(pool.number, batches, rejects, len(pool.places))

    def _read(self, places: Sequence[Place]) -> list[RawSample | Reject]:
        found: dict[Place, RawSample | Reject] = {}
        for number, source in enumerate(self.sources):
            wanted = [place for place in places if place.source == number]
            samples = source.read([(place.shard, place.sample) for place in wanted])
            found.update(zip(wanted, samples, strict=True))
        return [found[place] for place in places]


class Loader(Generic[RowT, BatchT]):
    """Read shards as batches, endlessly (`batches`) or once (`one_epoch`).

    Args:
        shares: of the samples, for each source; None joins the sources.
        num_streams: batches of a step over all ranks; a multiple of `num_ranks`.
        on_reject: called with every sample that is left out.
    Raises:
        ValueError: the streams cannot be shared evenly among the ranks.
    """

    def __init__(
        self,
        sources: Sequence[ShardSet],
        config: DataConfig,
        encode: Callable[[RawSample, random.Random], RowT],
        collate: Callable[[Sequence[RowT]], BatchT],
        seed: int,
        shuffle: bool = True,
        shares: Sequence[Fraction] | None = None,
        num_streams: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
        on_reject: Callable[[Reject], None] = lambda reject: None,
    ) -> None:
        if num_streams % num_ranks:
            raise ValueError(f"{num_streams} streams cannot be shared evenly by {num_ranks} ranks")
        counts = [source.num_samples for source in sources]
        self.sources = sources
        self.order = SampleOrder(counts, config, seed, shuffle, shares, num_streams)
        self.config = config
        self.reader = PoolReader(sources, config, encode, collate, seed, shuffle)
        self.own_streams = range(rank, num_streams, num_ranks)
        self.state = LoaderState.start(num_streams)
        self.on_reject = on_reject
        self.num_read = self.num_rejects = 0
        self.rejects: list[Reject] = []

    def batches(self) -> Iterator[BatchT]:
        """Yield batches for ever, from `state` on: one of each of this rank's streams, in turn.

        `state` always names what comes next; a run resumes between two steps.

        Raises:
            UserError: more than `max_bad_fraction` of the samples were rejected, or none is left.
        """
        waiting: dict[int, deque[tuple[int, int, BatchT]]] = {s: deque() for s in self.own_streams}
        pools = self._read(heapq.merge(*map(self._pools_left, self.own_streams)))
        num_empty = 0  # samples read since a batch was seen
        while True:
            for stream, queue in waiting.items():
                while not queue:
                    pool = next(pools)
                    num_empty = 0 if pool.batches else num_empty + pool.num_samples
                    if num_empty >= self.order.num_samples:
                        raise UserError("the data holds no usable sample")
                    self._queue(pool, waiting)
                number, place, batch = queue.popleft()
                self._advance(stream, number, place + 1)
                yield batch

    def one_epoch(self, epoch: int = 0) -> Iterator[BatchT]:
        """Yield this rank's batches of one epoch, whatever `state` is; it may have none.

        Raises:
            UserError: more than `max_bad_fraction` of the samples were rejected, or none is left
                and there is no other rank.
        """
        first = epoch * self.order.pools_per_epoch
        numbers = range(first, first + self.order.pools_per_epoch)
        own = [number for number in numbers if number % self.order.num_streams in self.own_streams]
        given = 0
        for pool in self._read(own):
            given += len(pool.batches)
            yield from pool.batches
        if len(own) == len(numbers) and not given:
            raise UserError("the data holds no usable sample")

    def _pools_left(self, stream: int) -> Iterator[int]:
        first, _ = self.state.streams[stream]
        return itertools.count(first, self.order.num_streams)

    def _read(self, numbers: Iterable[int]) -> Iterator[PoolBatches[BatchT]]:
        workers = self.config.num_workers
        pools = torch.utils.data.DataLoader(
            self.reader,
            batch_size=None,
            sampler=map(self.order.pool, numbers),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # it draws a seed for workers, not from the run's stream
        )
        for pool in pools:
            if pool.failure is not None:
                raise StorageError(pool.failure)
            self._count_rejects(pool)
            yield pool

    def _queue(
        self,
        pool: PoolBatches[BatchT],
        waiting: Mapping[int, deque[tuple[int, int, BatchT]]],
    ) -> None:
        """Put a pool's batches where its stream takes them, without those given before."""
        stream = pool.number % self.order.num_streams
        number, place = self.state.streams[stream]
        given = place if pool.number == number else 0
        places = range(given, len(pool.batches))
        waiting[stream].extend((pool.number, place, pool.batches[place]) for place in places)

    def _advance(self, stream: int, number: int, place: int) -> None:
        streams = list(self.state.streams)
        streams[stream] = number, place
        self.state = LoaderState(tuple(streams))

    def _count_rejects(self, pool: PoolBatches[BatchT]) -> None:
        self.num_read += pool.num_samples
        self.num_rejects += len(pool.rejects)
        self.rejects += pool.rejects[: KEPT_REJECTS - len(self.rejects)]
        for reject in pool.rejects:
            self.on_reject(reject)
        if self.num_rejects > max(1.0, self.config.max_bad_fraction * self.num_read):
            last = pool.rejects[-1] if pool.rejects else self.rejects[-1]
            raise UserError(
                f"{self.num_rejects} of {self.num_read} samples were rejected, more than "
                f"data.max_bad_fraction {self.config.max_bad_fraction}; "
                f"the last: {last.key}: {last.reason}"
            )


def _leave_signals_to_the_run(worker: int) -> None:
    """A scheduler signals all processes; the run saves first, and its workers end with it."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
