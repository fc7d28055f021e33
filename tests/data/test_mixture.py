"""Weights by tokens hold in tokens, whatever the sources' lengths; counting is done once."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from data.config import DataConfig
from data.mixture import count_tokens, sample_shares
from data.order import SampleOrder
from data.pack import Manifest, pack
from data.schema import RawSample, Sample
from data.shards import ShardSet
from data.stats import Ruler
from vlm.chat.processor import Processor

WORDS = {"short": 2, "long": 25}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, num_words in WORDS.items():
        folders[name] = tmp_path_factory.mktemp("mixture") / name
        pack(samples(name, num_words), folders[name], samples_per_shard=5)
    return folders


def samples(name: str, num_words: int) -> Iterator[RawSample]:
    for index in range(12):
        text = " ".join(["circle"] * (num_words + index % 3))
        parts = [{"type": "text", "text": text}]
        messages = [{"role": role, "content": parts} for role in ("user", "assistant")]
        yield RawSample(f"{name}{index}", Sample.parse({"messages": messages}), [])


def config(sources: dict[str, Path], mix_by: str, weights: tuple[float, float]) -> DataConfig:
    train = [{"path": p, "weight": w} for p, w in zip(sources.values(), weights, strict=True)]
    fields = {"train": train, "mix_by": mix_by, "batch_samples": 4, "max_tokens": 99}
    return DataConfig.model_validate(fields)


def open_all(sources: dict[str, Path]) -> list[ShardSet]:
    return [ShardSet.open(folder) for folder in sources.values()]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.05, 0.95)])
def test_each_source_gives_its_part_of_the_tokens(
    sources: dict[str, Path], processor: Processor, weights: tuple[float, float]
) -> None:
    opened = open_all(sources)
    settings = config(sources, "tokens", weights)
    shares = sample_shares(settings, opened, processor)
    order = SampleOrder([s.num_samples for s in opened], settings, seed=0, shares=shares)
    ruler = Ruler(16, 4, processor)
    lengths = [list(map(ruler.length, source.read_all())) for source in opened]
    tokens = [0, 0]
    for number in range(30):
        for place in order.pool(number).places:
            tokens[place.source] += lengths[place.source][5 * place.shard + place.sample]
    # Off by less than one epoch of the sources, whose sum is known, and one sample.
    for weight, drawn in zip(weights, tokens, strict=True):
        expected = weight / sum(weights) * sum(tokens)
        assert abs(drawn - expected) <= sum(map(sum, lengths)) * 0.2
    assert sum(tokens) > 10 * sum(map(sum, lengths))


def test_weights_by_samples_are_taken_as_they_are(
    sources: dict[str, Path], processor: Processor
) -> None:
    settings = config(sources, "samples", (0.1, 2.5))
    shares = sample_shares(settings, open_all(sources), processor)
    assert shares == [Fraction(0.1), Fraction(2.5)]


def test_sources_without_weights_are_joined(sources: dict[str, Path], processor: Processor) -> None:
    fields = {"train": list(sources.values()), "batch_samples": 4, "max_tokens": 99}
    settings = DataConfig.model_validate(fields)
    assert sample_shares(settings, open_all(sources), processor) is None


def test_tokens_are_counted_once_for_the_same_data_and_tokenizer(
    processor: Processor, tmp_path: Path
) -> None:
    pack(samples("once", 7), tmp_path / "shards")
    source = ShardSet.open(tmp_path / "shards")
    ruler = Ruler(16, 4, processor)
    expected = sum(map(ruler.length, source.read_all()))
    assert count_tokens(source, processor) == expected
    for entry in Manifest.read(tmp_path / "shards").shards:
        (tmp_path / "shards" / entry.name).unlink()
    assert count_tokens(source, processor) == expected
    other = Processor.train(["something else"] * 9, processor.vision, 280)
    assert other.fingerprint != processor.fingerprint


def test_a_cache_that_cannot_be_written_is_told_and_counting_goes_on(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(samples("unkept", 3), tmp_path / "shards")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = ShardSet.open(tmp_path / "shards")
    with pytest.warns(UserWarning, match="cannot be written .* set XDG_CACHE_HOME"):
        assert count_tokens(source, processor) > 0
