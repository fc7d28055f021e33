"""The order of samples is a pure function of seed, epoch and position, and limits are kept."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.loader import Loader, LoaderState
from data.pack import Manifest, pack
from data.schema import RawSample, Reject, Sample
from data.shape_samples import write_scenes
from data.shapes import SceneConfig
from data.shards import ShardSet, read_folder
from vlm.errors import UserError

NUM_SAMPLES = 23
Batch = tuple[str, ...]
Steps = Iterator[tuple[list[Batch], LoaderState]]


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
    names = ("shares", "num_streams", "rank", "num_ranks", "on_reject")
    chosen = {name: settings.pop(name) for name in names if name in settings}
    defaults = {"batch_samples": 2, "pool_batches": 3, "shuffle_shards": 2, "max_tokens": 100}
    config = DataConfig.model_validate({**defaults, "train": folders, **settings})
    sources = [ShardSet.open(folder) for folder in folders]
    return Loader(sources, config, encode, collate, seed, shuffle, **chosen)


def epoch(loader: Loader[TextRow, Batch], number: int = 0) -> list[Batch]:
    return list(loader.one_epoch(number))


def steps(folder: Path, ranks: int, streams: int, state: LoaderState | None = None) -> Steps:
    """The steps of a run from `state` on, with all its ranks in this process."""
    loaders = [
        make_loader(folder, num_streams=streams, rank=rank, num_ranks=ranks)
        for rank in range(ranks)
    ]
    for loader in loaders:
        loader.state = state or loader.state
    sources = [loader.batches() for loader in loaders]
    while True:
        own = [[next(source) for _ in loaders[0].own_streams] for source in sources]
        in_turn = [batch for together in zip(*own, strict=True) for batch in together]
        yield in_turn, LoaderState.merge([loader.state for loader in loaders])


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


def test_a_resumed_loader_gives_exactly_the_remaining_batches(folder: Path) -> None:
    loader = make_loader(folder)
    given, states = [], [loader.state]
    for batch in islice(loader.batches(), 30):  # two and a half epochs of 12 batches
        given.append(batch)
        states.append(loader.state)
    assert {pool for ((pool, _),) in (state.streams for state in states)} == set(range(10))
    assert {batch for ((_, batch),) in (state.streams for state in states)} == {0, 1, 2, 3}
    for position, state in enumerate(states[:27]):
        resumed = make_loader(folder)
        resumed.state = LoaderState.parse(json.loads(json.dumps(asdict(state))))
        assert list(islice(resumed.batches(), 3)) == given[position : position + 3]


def test_a_loader_resumed_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path: Path) -> None:
    pack(samples(["x", "xx"]), tmp_path)
    loader = make_loader(tmp_path)  # one pool of one batch
    batches = list(islice(loader.batches(), 3))
    resumed = make_loader(tmp_path)
    resumed.state = LoaderState(((0, 1),))
    assert list(islice(resumed.batches(), 2)) == batches[1:]


@settings(max_examples=25)
@given(st.integers(1, 6), st.data())
def test_steps_are_the_same_on_any_number_of_ranks_wherever_a_run_resumes(
    folder: Path, streams: int, data: st.DataObject
) -> None:
    divisors = [ranks for ranks in range(1, streams + 1) if streams % ranks == 0]
    alone = list(islice(steps(folder, 1, streams), 12))
    state = None
    resumed: list[list[Batch]] = []
    while len(resumed) < 12:
        ranks = data.draw(st.sampled_from(divisors), label="ranks")
        until_kill = data.draw(st.integers(1, 12), label="steps")
        done = list(islice(steps(folder, ranks, streams, state), until_kill))
        resumed += [batches for batches, _ in done]
        state = done[-1][1]
    assert resumed[:12] == [batches for batches, _ in alone]


def test_ranks_read_every_sample_of_an_epoch_once_between_them(folder: Path) -> None:
    for ranks in (1, 2, 3, 8):
        drawn: list[str] = []
        for rank in range(ranks):
            loader = make_loader(
                folder, pool_batches=1, num_streams=ranks, rank=rank, num_ranks=ranks
            )
            drawn += keys(epoch(loader, 2))
        assert sorted(drawn) == [f"s{index:02d}" for index in range(NUM_SAMPLES)]


def test_a_process_ends_though_its_workers_are_still_at_work(folder: Path) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from reader_program import collate, encode
from data.config import DataConfig
from data.loader import Loader
from data.shards import ShardSet
config = DataConfig(train=(sys.argv[2],), batch_samples=2, max_tokens=100, num_workers=2)
loader = Loader([ShardSet.open(sys.argv[2])], config, encode, collate, seed=0)
batches = loader.batches()
next(batches)
raise SystemExit(5)
"""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1])}
    command = [sys.executable, "-c", program, str(here), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (5, "")


def test_workers_of_a_rank_change_nothing(folder: Path) -> None:
    settings = {"num_streams": 4, "rank": 1, "num_ranks": 2}
    alone = list(islice(make_loader(folder, **settings).batches(), 20))
    assert alone == list(islice(make_loader(folder, num_workers=2, **settings).batches(), 20))


@pytest.mark.parametrize("budget", [{"batch_samples": 8}, {"batch_tokens": 600}])
def test_the_batches_of_a_step_are_of_like_length(budget: dict[str, int], tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = ["x" * min(400, int(rng.lognormvariate(4, 0.7)) + 1) for _ in range(960)]
    pack(samples(texts, "n"), tmp_path)
    lengths = {raw.key: len(raw.sample.messages[0].text) for raw in read_folder(tmp_path)}
    chosen = {"batch_samples": None, "max_tokens": 400, **budget}
    batches = make_loader(tmp_path, num_streams=4, pool_batches=16, **chosen).batches()
    waits = []
    for _ in range(60):
        longest = [[lengths[key] for key in keys([next(batches)])] for _ in range(4)]
        costs = [len(batch) * max(batch) for batch in longest]
        waits.append(max(costs) / (sum(costs) / 4))
    # About 1.1. Where ranks shuffle their batches apart, batches of 8 samples make it 1.9.
    assert sum(waits) / len(waits) < 1.25


def test_a_position_of_another_number_of_streams_is_refused(folder: Path) -> None:
    loader = make_loader(folder, num_streams=2)
    loader.state = LoaderState.start(4)
    with pytest.raises(
        UserError, match=r"a step had 4 batches .* has 2: put batches_per_step back"
    ):
        next(loader.batches())


def test_streams_that_ranks_cannot_share_evenly_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="4 streams cannot be shared evenly by 3 ranks"):
        make_loader(folder, num_streams=4, num_ranks=3)


def test_damaged_positions_are_refused() -> None:
    for content in ({}, {"streams": [1]}, {"streams": [["a", 1]]}, None):
        with pytest.raises(UserError, match="no position of a data loader"):
            LoaderState.parse(content)


def test_resuming_reads_no_shard_of_the_windows_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    pack(read_folder(folder), out, 4)
    settings = {"shuffle": False, "batch_samples": 4, "pool_batches": 2}
    whole = list(islice(make_loader(out, **settings).batches(), 6))
    for entry in Manifest.read(out).shards[:2]:
        (out / entry.name).unlink()
    resumed = make_loader(out, **settings)
    resumed.state = LoaderState(((1, 0),))
    assert list(islice(resumed.batches(), 4)) == whole[2:]
    with pytest.raises(UserError, match="is missing"):
        next(make_loader(out, **settings).batches())


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


def test_sources_are_mixed_by_weight_at_any_time(folder: Path, tmp_path: Path) -> None:
    pack(samples(["y"] * 8, prefix="t"), tmp_path / "other", 4)
    shares = [Fraction(1), Fraction(3)]
    loader = make_loader(folder, tmp_path / "other", shares=shares, num_streams=2)
    drawn = keys(list(islice(loader.batches(), 60)))
    assert len(drawn) == 120
    assert sum(key.startswith("t") for key in drawn) == 90
    resumed = make_loader(folder, tmp_path / "other", shares=shares, num_streams=2)
    resumed.state = loader.state
    assert list(islice(resumed.batches(), 9)) == list(islice(loader.batches(), 9))


def test_rejects_are_counted_and_handed_on_with_shard_key_and_reason(tmp_path: Path) -> None:
    pack(samples(["x", "broken", "x", "broken", "x", "x"]), tmp_path)
    seen: list[Reject] = []
    loader = make_loader(tmp_path, max_bad_fraction=0.4, on_reject=seen.append)
    assert sorted(keys(epoch(loader))) == ["s00", "s02", "s04", "s05"]
    shard = "shard-000000.tar"
    expected = [Reject(key, "it is broken", shard) for key in ("s01", "s03")]
    assert sorted(loader.rejects, key=lambda reject: reject.key) == expected
    assert sorted(seen, key=lambda reject: reject.key) == expected
    assert (loader.num_read, loader.num_rejects) == (6, 2)


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
    loader.reader.encode = lambda raw, rng: TextRow(raw.key, 1 // 0)
    with pytest.raises(ZeroDivisionError):
        next(loader.batches())


def test_reading_leaves_the_random_stream_of_the_run_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    epoch(make_loader(folder))
    assert torch.get_rng_state().equal(before)


def test_pictures_reach_the_encoder_as_they_were_packed(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, 1, SceneConfig(tile_size_px=24))
    loader = make_loader(tmp_path)
    drawn: dict[str, list[bytes]] = {}
    loader.reader.encode = lambda raw, rng: drawn.update({raw.key: raw.images}) or TextRow("", 1)
    list(loader.one_epoch())
    assert drawn == {raw.key: raw.images for raw in read_folder(tmp_path)}


def test_four_readers_killed_and_resumed_as_two_and_eight_read_the_same(
    folder: Path, tmp_path: Path
) -> None:
    program = Path(__file__).parent / "reader_program.py"
    root = program.parents[2]
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "steps.json").read_text())
    expected = [batches for batches, _ in islice(steps(folder, 1, 8), len(found))]
    assert len(found) >= 40
    assert [[tuple(batch) for batch in batches] for batches in found] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_tokens": 5}, "exactly one of batch_samples and batch_tokens"),
        ({"batch_samples": None}, "exactly one of batch_samples and batch_tokens"),
        ({"max_turns": 2}, "set split_turns"),
        ({"train": ["a", {"path": "b", "weight": 2}]}, "a has no weight"),
        ({"train": [{"path": "b", "weight": 0}]}, "greater than 0"),
        ({"mix_by": "tokens"}, "needs a weight for each"),
    ],
)
def test_a_contradictory_configuration_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"train": ["a"], "batch_samples": 2, "max_tokens": 9, **settings})
