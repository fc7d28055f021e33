"""`vlm bench load` loads the same samples on every side, and refuses what does not compare."""

import json
from pathlib import Path

import pytest
import torch

from data.pack import pack
from data.schema import RawSample, Sample
from eval.speed.load import Batches, compare_loaders
from eval.speed.long_load import compare_long_loading
from eval.speed.photos import make_photo, pack_photos, parse_size
from vlm import cli
from vlm.errors import UserError

# webdataset leaves it to the garbage collector to close shards.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TINY = ("bench", "load", "--samples", "8", "--large-size", "200x150", "--tile-size", "28")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load") / "photos"
    pack_photos(folder, (200, 150), num_samples=20)
    return folder


def test_the_command_measures_every_source_beside_both_peers(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "load.json"
    options = ("--data", str(shards), "--repeats", "1", "--json", str(path))
    threads = torch.get_num_threads()
    assert cli.main([*TINY, *options]) == 0
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "rows"} and report["machine"]["threads"] == 1
    assert [row["setting"] for row in report["rows"]] == [
        f"{source} {peer} 28 px, workers 0"
        for source in ("photos", "small", "large")
        for peer in ("webdataset", "transformers")
    ]
    for row in report["rows"]:
        assert row["name"] == "load" and row["unit"] == "samples/s" and row["peer"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert capsys.readouterr().out.count("255 steps off (allowed: 1.5)") == 3
    assert torch.get_num_threads() == threads


def test_a_long_data_set_is_resumed_in_the_middle_and_watched_for_memory(tmp_path: Path) -> None:
    resume, memory = compare_long_loading(tmp_path / "long", 400)
    assert (resume.name, resume.unit, memory.name, memory.unit) == ("resume", "s", "memory", "MB")
    assert resume.ours > 0 and resume.ratio == pytest.approx(resume.peer / resume.ours)
    assert memory.ours >= 0 and memory.ratio > 0


def test_every_route_gives_each_sample_once_also_with_workers(shards: Path) -> None:
    batches = Batches.of(shards, 28, 4, num_workers=2)
    expected = sorted(f"photo{index:06d}" for index in range(20))
    for route in (batches.ours, batches.webdataset, batches.transformers):
        assert sorted(key for batch in route() for key in batch.keys) == expected


def test_routes_agree_and_disagreement_is_not_timed(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "steps off" in Batches.of(shards, 28, 4, 0).check()
    monkeypatch.setattr("eval.speed.load.MEAN_STEPS", 1e-9)
    with pytest.raises(RuntimeError, match=r"drafts are .* of 255 steps off"):
        compare_loaders(shards, 28, 4, 0, repeats=1)


def test_samples_without_exactly_one_picture_are_refused(tmp_path: Path) -> None:
    chat = {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": "Hello."}]}
            for role in ("user", "assistant")
        ]
    }
    pack([RawSample("talk", Sample.parse(chat), [])], tmp_path / "talks")
    with pytest.raises(UserError, match="talk has 0 pictures"):
        compare_loaders(tmp_path / "talks", 28, 4, 0, repeats=1)


def test_photos_are_the_same_every_time_and_of_the_size_asked_for() -> None:
    assert make_photo(70, 40, 1).size == parse_size("70x40") == (70, 40)
    assert make_photo(70, 40, 1).tobytes() == make_photo(70, 40, 1).tobytes()
    assert make_photo(70, 40, 1).tobytes() != make_photo(70, 40, 2).tobytes()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--large-size", "12MP"), "a size is '12MP', needed: width and height in pixels"),
        (("--data", "nowhere"), "nowhere holds no manifest.json"),
        (("--samples", "3"), "--samples"),
        (("--json", "report.txt"), "--json is report.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    options: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and named in told and told.count("\n") == 1
