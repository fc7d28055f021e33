"""Data sets that are long rather than large: how soon a run resumes, and what memory it grows by.

Beside plain webdataset, which resumes by reading and dropping what came before.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from data.loader import LoaderState
from eval.speed.harness import Row
from eval.speed.load import BATCH_SAMPLES, Batches
from eval.speed.photos import pack_photos

PHOTO_PX, TILE_SIZE_PX = (64, 48), 56  # little work for a sample: its reading is what counts
WARM_SHARE = 0.1  # of the batches, before memory is looked at


def compare_long_loading(folder: Path, num_samples: int) -> list[Row]:
    """Make shards of `num_samples` little pictures in `folder`, and read them.

    Returns:
        the seconds until a run that resumes in the middle has its first batch, and the megabytes by
        which the process grows in half an epoch, after its first tenth.
    """
    pack_photos(folder, PHOTO_PX, num_samples, samples_per_shard=1000)
    batches = Batches.of(folder, TILE_SIZE_PX, max_num_tiles=1, num_workers=0)
    half = num_samples // 2
    setting = f"{num_samples:,} samples"
    ours_s = _seconds_to_first(lambda: _resumed(batches, half))
    peer_s = _seconds_to_first(lambda: islice(batches.webdataset(), half // BATCH_SAMPLES, None))
    rows = [_less_is_better("resume", f"{setting}, in the middle", ours_s, peer_s, "s")]
    routes = batches.ours, batches.webdataset
    ours_mb, peer_mb = (_growth_mb(route(), half // BATCH_SAMPLES) for route in routes)
    rows.append(_less_is_better("memory", f"{half:,} samples", ours_mb, peer_mb, "MB"))
    return rows


def _resumed(batches: Batches, num_samples: int) -> Iterator[Any]:
    loader = batches.loader(shuffle=True)
    pool = num_samples // loader.order.pool_samples
    loader.state = LoaderState.parse(asdict(LoaderState(((pool, 0),))))
    return loader.batches()


def _seconds_to_first(start: Callable[[], Iterator[Any]]) -> float:
    began = time.perf_counter()
    next(start())
    return time.perf_counter() - began


def _growth_mb(route: Iterator[Any], num_batches: int) -> float:
    """By how much the process's memory grows at most once it is warm."""
    gc.collect()
    process = psutil.Process()
    warm = int(WARM_SHARE * num_batches)
    for _ in islice(route, warm):
        pass
    before = most = process.memory_info().rss
    for _ in islice(route, num_batches - warm):
        most = max(most, process.memory_info().rss)
    return (most - before) / 1e6


def _less_is_better(name: str, setting: str, ours: float, peer: float, unit: str) -> Row:
    # Memory that has not grown at all is no ratio: a tenth of a unit is as little as matters.
    ratio = max(peer, 0.1) / max(ours, 0.1) if unit == "MB" else peer / ours
    return Row(name=name, setting=setting, ours=ours, peer=peer, ratio=ratio, unit=unit)
