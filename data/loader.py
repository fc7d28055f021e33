"""Batches in an order that is a pure function of seed, epoch and position.

Shards are shuffled, samples are shuffled within a window of several shards, and consecutive
samples form pools. A pool is decoded and encoded as one unit (by a worker process if there are
any) and cut into batches of rows of like length. The position of a run is three integers, however
many workers it has.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch.utils.data

from data.batches import RowT, group_samples
from data.config import DataConfig
from data.pack import Manifest
from data.schema import RawSample
from data.shards import ShardSet
from vlm.errors import UserError

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class LoaderState:
    """The next batch to give: its epoch, the pool of the epoch, the batch of the pool."""

    epoch: int = 0
    pool: int = 0
    batch: int = 0


@dataclass(frozen=True)
class PoolBatches(Generic[BatchT]):
    """The batches of one pool, and (key, reason) of the samples that were rejected."""

    batches: list[BatchT]
    rejects: list[tuple[str, str]]
    num_samples: int


@dataclass(frozen=True)
class PoolTask:
    """Work for one pool: its place and its samples."""

    epoch: int
    pool: int
    samples: list[RawSample]


class PoolEncoder(torch.utils.data.Dataset[PoolBatches[BatchT]], Generic[RowT, BatchT]):
    """Encode a pool's samples and cut them into batches; runs in the workers."""

    def __init__(
        self,
        encode: Callable[[RawSample, random.Random], RowT],
        collate: Callable[[Sequence[RowT]], BatchT],
        config: DataConfig,
        seed: int,
        shuffle: bool,
    ) -> None:
        self.encode = encode
        self.collate = collate
        self.config = config
        self.seed = seed
        self.shuffle = shuffle

    def __getitem__(self, task: PoolTask) -> PoolBatches[BatchT]:
        rows: list[RowT] = []
        rejects: list[tuple[str, str]] = []
        for raw in task.samples:
            try:
                rng = random.Random(f"{self.seed}/{task.epoch}/{raw.key}")
                rows.append(self.encode(raw, rng))
            except UserError as error:
                rejects.append((raw.key, str(error)))
        groups = group_samples(rows, self.config)
        if self.shuffle:
            random.Random(f"{self.seed}/{task.epoch}/pool{task.pool}").shuffle(groups)
        return PoolBatches([self.collate(group) for group in groups], rejects, len(task.samples))


class Loader(Generic[RowT, BatchT]):
    """Read folders of shards as batches, endlessly (`batches`) or once (`one_epoch`)."""

    def __init__(
        self,
        folders: Sequence[Path],
        config: DataConfig,
        encode: Callable[[RawSample, random.Random], RowT],
        collate: Callable[[Sequence[RowT]], BatchT],
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.order = SampleOrder(folders, config, seed, shuffle)
        self.config = config
        self.encoder = PoolEncoder(encode, collate, config, seed, shuffle)
        self.state = LoaderState()
        self.num_read = 0
        self.rejects: list[tuple[str, str]] = []

    def batches(self) -> Iterator[BatchT]:
        """Yield batches for ever, from `state` on; `state` always names the next batch."""
        while True:
            yield from self.one_epoch()
            self.state = LoaderState(epoch=self.state.epoch + 1)

    def one_epoch(self) -> Iterator[BatchT]:
        """Yield the batches of the current epoch from `state` on.

        Raises:
            UserError: more than `max_bad_fraction` of the samples were rejected, or none is left.
        """
        workers = self.config.num_workers
        pools = torch.utils.data.DataLoader(
            self.encoder,
            batch_size=None,
            sampler=self.order.pools(self.state.epoch, self.state.pool),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            generator=torch.Generator(),  # it draws a seed for workers, not from the run's stream
        )
        whole_epoch = self.state == LoaderState(self.state.epoch)
        given = 0
        for pool in pools:
            self._count_rejects(pool)
            for batch in pool.batches[self.state.batch :]:
                self.state = replace(self.state, batch=self.state.batch + 1)
                given += 1
                yield batch
            self.state = LoaderState(self.state.epoch, self.state.pool + 1)
        if whole_epoch and not given:
            raise UserError("the data holds no usable sample")

    def _count_rejects(self, pool: PoolBatches[BatchT]) -> None:
        self.num_read += pool.num_samples
        self.rejects += pool.rejects
        if len(self.rejects) > max(1.0, self.config.max_bad_fraction * self.num_read):
            key, reason = self.rejects[-1]
            raise UserError(
                f"{len(self.rejects)} of {self.num_read} samples were rejected, more than "
                f"data.max_bad_fraction {self.config.max_bad_fraction}; the last: {key}: {reason}"
            )


class SampleOrder:
    """The order of samples of an epoch, read from shards window by window."""

    def __init__(
        self, folders: Sequence[Path], config: DataConfig, seed: int, shuffle: bool
    ) -> None:
        self.manifests = [Manifest.read(folder) for folder in folders]
        self.shards = [
            (source, shard)
            for source in map(ShardSet.open, folders)
            for shard in range(len(source.names))
        ]
        self.num_samples = sum(source.num_samples[shard] for source, shard in self.shards)
        self.config = config
        self.seed = seed
        self.shuffle = shuffle
        # By tokens, a pool is sized by a guess of 128 tokens a row: only its variety depends on it.
        rows = config.batch_samples or max(1, (config.batch_tokens or 0) // 128)
        self.pool_samples = rows * config.pool_batches

    def pools(self, epoch: int, first_pool: int) -> Iterator[PoolTask]:
        """Yield the pools of an epoch from `first_pool` on; earlier windows are not read."""
        index = first_pool
        pending: list[RawSample] = []
        for sample in self._samples(epoch, skip=first_pool * self.pool_samples):
            pending.append(sample)
            if len(pending) == self.pool_samples:
                yield PoolTask(epoch, index, pending)
                index, pending = index + 1, []
        if pending:
            yield PoolTask(epoch, index, pending)

    def _samples(self, epoch: int, skip: int) -> Iterator[RawSample]:
        shards = list(self.shards)
        rng = random.Random(f"{self.seed}/{epoch}/shards")
        if self.shuffle:
            rng.shuffle(shards)
        for start in range(0, len(shards), self.config.shuffle_shards):
            window = shards[start : start + self.config.shuffle_shards]
            window_samples = sum(source.num_samples[shard] for source, shard in window)
            if skip >= window_samples:
                skip -= window_samples
                continue
            samples = [
                raw
                for source, shard in window
                for raw in source.read_all(
                    (shard, place) for place in range(source.num_samples[shard])
                )
            ]
            if self.shuffle:
                random.Random(f"{self.seed}/{epoch}/window{start}").shuffle(samples)
            yield from samples[skip:]
            skip = 0
