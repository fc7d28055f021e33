from pathlib import Path

import pytest

from eval.predictions import Prediction, PredictionFile, discard, read_predictions
from vlm.errors import UserError

SETTINGS = {"weights": {"model": "ab"}, "commit": "c"}
PREDICTIONS = [Prediction(id=str(n), text=f"answer {n}", images=("cd",)) for n in range(6)]
IDS = [prediction.id for prediction in PREDICTIONS]


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """What an evaluation that nothing interrupted writes."""
    file = PredictionFile(tmp_path / "whole.jsonl", SETTINGS)
    file.append(PREDICTIONS)
    assert file.complete(IDS) == PREDICTIONS
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("cut", [3, 40, 100, 150, 10_000])
def test_a_file_that_was_cut_off_anywhere_goes_on_to_the_same_bytes(
    cut: int, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(whole[:cut])
    file = PredictionFile(path, SETTINGS)
    assert all(PREDICTIONS[int(key)] == known for key, known in file.known.items())
    file.append([p for p in PREDICTIONS if p.id not in file.known])
    assert file.complete(IDS) == PREDICTIONS
    assert path.read_bytes() == whole


@pytest.mark.parametrize("ranks", [2, 3])
def test_parts_of_several_processes_become_the_same_file(
    ranks: int, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    files = [PredictionFile(path, SETTINGS, (rank, ranks)) for rank in range(ranks)]
    for rank, file in enumerate(files):
        file.append(PREDICTIONS[rank::ranks])
        file.close()
    files[0].complete(IDS)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.glob("p.jsonl*")] == ["p.jsonl"]


def test_what_several_processes_left_is_gone_on_with_by_one(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    left = PredictionFile(path, SETTINGS, (1, 4))
    left.append(PREDICTIONS[1::4])
    left.close()
    file = PredictionFile(path, SETTINGS)
    assert sorted(file.known) == IDS[1::4]
    file.append([p for p in PREDICTIONS if p.id not in file.known])
    file.complete(IDS)
    assert path.read_bytes() == whole


def test_other_settings_are_refused_and_named(whole: bytes, tmp_path: Path) -> None:
    changed = {"weights": {"model": "xy"}, "commit": "c"}
    with pytest.raises(UserError, match=r"weights\.model was 'ab', is 'xy'; go on with the same"):
        PredictionFile(tmp_path / "whole.jsonl", changed)
    assert (tmp_path / "whole.jsonl").read_bytes() == whole
    discard(tmp_path / "whole.jsonl")
    with PredictionFile(tmp_path / "whole.jsonl", changed) as file:
        assert file.known == {}


def test_a_foreign_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="is no predictions file"):
        PredictionFile(path, SETTINGS)
    assert path.read_text() == '{"a": 1}\n'


def test_a_damaged_line_is_named(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    path.write_bytes(whole.replace(b'"id":"2"', b'"od":"2"'))
    with pytest.raises(UserError, match=r"whole\.jsonl:4 is no prediction"):
        read_predictions(path)
