"""The order of samples is a pure function of seed, epoch and position, and limits are kept."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from data.config import DataConfig
from data.loader import Loader, LoaderState, SampleOrder
from data.pack import Manifest, pack
from data.schema import RawSample, Sample
from data.shape_samples import write_scenes
from data.shapes import SceneConfig
from data.shards import read_folder
from vlm.errors import UserError

NUM_SAMPLES = 23
Batch = tuple[str, ...]


@dataclass(frozen=True)
class TextRow:
    """A sample's key, with a number drawn for it, as if it were encoded."""

    key: str
    longest: int
    num_tiles: int = 0

    @property
    def row_tokens(self) -> tuple[int, ...]:
        return (self.longest,)


def encode(raw: RawSample, rng: random.Random) -> TextRow:
    if raw.sample.messages[0].text == "broken":
        raise UserError("it is broken")
    return TextRow(f"{raw.key}:{rng.randrange(1000)}", len(raw.sample.messages[0].text))


def collate(rows: Sequence[TextRow]) -> Batch:
    return tuple(row.key for row in rows)


def samples(texts: Sequence[str], prefix: str = "s") -> Iterator[RawSample]:
    for index, text in enumerate(texts):
        content = [{"type": "text", "text": text}]
        messages = [{"role": role, "content": content} for role in ("user", "assistant")]
        yield RawSample(f"{prefix}{index:02d}", Sample.parse({"messages": messages}), [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 samples of various lengths in six shards."""
    out = tmp_path_factory.mktemp("shards")
    pack(samples(["x" * (1 + index * 7 % 5) for index in range(NUM_SAMPLES)]), out, 4)
    return out


def make_loader(
    *folders: Path, seed: int = 0, shuffle: bool = True, **settings: Any
) -> Loader[TextRow, Batch]:
    defaults = {"batch_samples": 2, "pool_batches": 3, "shuffle_shards": 2, "max_tokens": 100}
    config = DataConfig.model_validate({**defaults, "train": folders, **settings})
    return Loader(folders, config, encode, collate, seed, shuffle)


def epoch(loader: Loader[TextRow, Batch], number: int = 0) -> list[Batch]:
    loader.state = LoaderState(epoch=number)
    return list(loader.one_epoch())


def keys(batches: Sequence[Batch]) -> list[str]:
    return [key.split(":")[0] for batch in batches for key in batch]


def test_order_is_the_same_without_workers_and_with_two(folder: Path) -> None:
    alone = list(islice(make_loader(folder).batches(), 30))
    assert alone == list(islice(make_loader(folder, num_workers=2).batches(), 30))


def test_every_sample_comes_exactly_once_an_epoch(folder: Path) -> None:
    for number in range(3):
        assert Counter(keys(epoch(make_loader(folder), number))) == Counter(
            f"s{index:02d}" for index in range(NUM_SAMPLES)
        )


def test_epochs_and_seeds_differ_in_order_in_batches_and_in_draws(folder: Path) -> None:
    first = epoch(make_loader(folder))
    assert first == epoch(make_loader(folder))
    for other in (epoch(make_loader(folder), 1), epoch(make_loader(folder, seed=1))):
        assert keys(other) != keys(first)
        assert {frozenset(keys([batch])) for batch in other} != {
            frozenset(keys([batch])) for batch in first
        }
        assert not {key for batch in other for key in batch} & {k for b in first for k in b}


def test_samples_move_between_shards_of_a_window_and_not_beyond(folder: Path) -> None:
    order = make_loader(folder, shuffle_shards=2).order
    shard_of = {
        raw.key: index // 4 for index, raw in enumerate(read_folder(folder))
    }  # four samples a shard
    drawn = [shard_of[raw.key] for pool in order.pools(0, 0) for raw in pool.samples]
    first, second = drawn[:8], drawn[8:16]
    assert len(set(first)) == len(set(second)) == 2 and not set(first) & set(second)
    assert first != sorted(first, key=first.index) or second != sorted(second, key=second.index)


def test_a_resumed_loader_gives_exactly_the_remaining_batches(folder: Path) -> None:
    loader = make_loader(folder)
    given, states = [], [loader.state]
    for batch in islice(loader.batches(), 30):  # two and a half epochs of 12 batches
        given.append(batch)
        states.append(loader.state)
    assert {state.epoch for state in states} == {0, 1, 2}
    assert {state.batch for state in states} > {0, 1, 2}
    for position, state in enumerate(states[:27]):
        resumed = make_loader(folder)
        resumed.state = state
        assert list(islice(resumed.batches(), 3)) == given[position : position + 3]


def test_a_loader_resumed_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path: Path) -> None:
    pack(samples(["x", "xx"]), tmp_path)
    loader = make_loader(tmp_path)  # one pool of one batch
    batches = list(islice(loader.batches(), 3))
    resumed = make_loader(tmp_path)
    resumed.state = LoaderState(epoch=0, pool=0, batch=1)
    assert list(islice(resumed.batches(), 2)) == batches[1:]


def test_resuming_reads_no_shard_of_the_windows_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    pack(read_folder(folder), out, 4)
    order = make_loader(out, shuffle=False, batch_samples=4, pool_batches=2).order
    whole = [[raw.key for raw in pool.samples] for pool in order.pools(0, 0)]
    for entry in Manifest.read(out).shards[:2]:
        (out / entry.name).unlink()
    assert [[raw.key for raw in pool.samples] for pool in order.pools(0, 1)] == whole[1:]
    with pytest.raises(UserError, match="is missing"):
        list(order.pools(0, 0))


def test_unshuffled_samples_come_in_the_order_in_which_they_were_packed(folder: Path) -> None:
    order = make_loader(folder, shuffle=False).order
    drawn = [
        raw.key for number in (0, 5) for pool in order.pools(number, 0) for raw in pool.samples
    ]
    assert drawn == [f"s{index:02d}" for index in range(NUM_SAMPLES)] * 2


def test_samples_of_like_length_share_a_batch(folder: Path) -> None:
    length = {raw.key: len(raw.sample.messages[0].text) for raw in read_folder(folder)}
    loader = make_loader(folder, pool_batches=100)
    batches = [sorted(length[key] for key in keys([batch])) for batch in epoch(loader)]
    assert sorted(batches) != batches  # the batches themselves are shuffled
    in_order = [size for batch in sorted(batches) for size in batch]
    assert in_order == sorted(in_order)


def test_several_folders_are_mixed(folder: Path, tmp_path: Path) -> None:
    pack(samples(["y"] * 8, prefix="t"), tmp_path / "other", 4)
    loader = make_loader(folder, tmp_path / "other", shuffle_shards=8)
    drawn = keys(epoch(loader))
    assert len(drawn) == len(set(drawn)) == NUM_SAMPLES + 8 == loader.order.num_samples
    places = [place for place, key in enumerate(drawn) if key.startswith("t")]
    assert places[-1] - places[0] > len(places)


def test_a_loader_by_tokens_keeps_to_the_limit(folder: Path) -> None:
    length = {raw.key: len(raw.sample.messages[0].text) for raw in read_folder(folder)}
    loader = make_loader(folder, batch_samples=None, batch_tokens=10, pool_batches=30)
    batches = epoch(loader)
    assert sorted(keys(batches)) == sorted(length)
    assert all(len(batch) * max(length[k] for k in keys([batch])) <= 10 for batch in batches)
    assert max(len(batch) for batch in batches) > 2


def test_rejects_are_counted_by_key_and_reason(tmp_path: Path) -> None:
    pack(samples(["x", "broken", "x", "broken", "x", "x"]), tmp_path)
    loader = make_loader(tmp_path, max_bad_fraction=0.4)
    assert sorted(keys(epoch(loader))) == ["s00", "s02", "s04", "s05"]
    assert sorted(loader.rejects) == [("s01", "it is broken"), ("s03", "it is broken")]
    assert loader.num_read == 6


def test_a_run_stops_above_max_bad_fraction_and_names_the_last_reject(tmp_path: Path) -> None:
    pack(samples(["x", "broken", "x", "broken", "x", "x"]), tmp_path)
    message = r"2 of 6 samples were rejected, more than data.max_bad_fraction 0.3; .*s0[13]: it is"
    with pytest.raises(UserError, match=message):
        epoch(make_loader(tmp_path, max_bad_fraction=0.3))


def test_one_reject_alone_stops_nothing(tmp_path: Path) -> None:
    pack(samples(["x", "broken", "x"]), tmp_path)
    assert len(keys(epoch(make_loader(tmp_path, max_bad_fraction=0)))) == 2


def test_data_without_a_usable_sample_stops_instead_of_looping(tmp_path: Path) -> None:
    pack(samples(["broken", "broken"]), tmp_path)
    with pytest.raises(UserError, match="no usable sample"):
        next(make_loader(tmp_path, max_bad_fraction=1).batches())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bug_in_encoding_is_not_taken_for_a_bad_sample(folder: Path, num_workers: int) -> None:
    loader = make_loader(folder, num_workers=num_workers)
    loader.encoder.encode = lambda raw, rng: TextRow(raw.key, 1 // 0)
    with pytest.raises(ZeroDivisionError):
        next(loader.batches())


def test_reading_leaves_the_random_stream_of_the_run_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    epoch(make_loader(folder))
    assert torch.get_rng_state().equal(before)


def test_pictures_reach_the_encoder_as_they_were_packed(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, 1, SceneConfig(tile_size_px=24))
    config = DataConfig(train=(tmp_path,), batch_samples=3, max_tokens=1)
    order = SampleOrder([tmp_path], config, seed=0, shuffle=True)
    drawn = {raw.key: raw.images for pool in order.pools(0, 0) for raw in pool.samples}
    assert drawn == {raw.key: raw.images for raw in read_folder(tmp_path)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_tokens": 5}, "exactly one of batch_samples and batch_tokens"),
        ({"batch_samples": None}, "exactly one of batch_samples and batch_tokens"),
        ({"max_turns": 2}, "set split_turns"),
    ],
)
def test_a_contradictory_configuration_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(Path(), **settings)
