"""What a run writes down: figures by step that read as if the run had never stopped."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.metrics import METRICS_FILE, MetricsLog, read_metrics


def write(folder: Path, first_step: int, steps: list[int], loss: float) -> None:
    with MetricsLog(folder, "align", 6, first_step) as log:
        for step in steps:
            log.record(step, "train", {"loss": loss, "samples_per_s": 2.0})


def test_records_are_lines_of_json_by_step_and_split(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", "align", 6, 0) as log:
        log.record(1, "train", {"loss": 0.5})
        log.record(1, "validation", {"loss": 0.25, "turn_accuracy": 1.0})
    lines = (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "split": "train", "loss": 0.5},
        {"step": 1, "split": "validation", "loss": 0.25, "turn_accuracy": 1.0},
    ]
    assert read_metrics(tmp_path / "run" / METRICS_FILE) == [json.loads(line) for line in lines]
    assert read_metrics(tmp_path / "nothing") == []


def test_records_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "align", 6, 0) as log:
        log.record(1, "train", {"loss": 0.5})
        assert len(read_metrics(tmp_path / METRICS_FILE)) == 1


def test_a_resumed_run_keeps_earlier_records_and_replaces_later_ones(tmp_path: Path) -> None:
    write(tmp_path, 0, [1, 2, 3, 4, 5], loss=1.0)
    write(tmp_path, 3, [4, 5, 6], loss=2.0)
    found = [(r["step"], r["loss"]) for r in read_metrics(tmp_path / METRICS_FILE)]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_a_new_run_in_the_same_folder_begins_a_new_file(tmp_path: Path) -> None:
    write(tmp_path, 0, [1, 2, 3], loss=1.0)
    write(tmp_path, 0, [1], loss=2.0)
    assert [record["loss"] for record in read_metrics(tmp_path / METRICS_FILE)] == [2.0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("first_step", "expected"), [(3, [1, 1, 1, 2, 2]), (0, [2, 2])])
def test_tensorboard_shows_the_figures_of_the_run_that_counts(
    tmp_path: Path, first_step: int, expected: list[float]
) -> None:
    write(tmp_path, 0, [1, 2, 3, 4, 5], loss=1.0)
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1"))  # of an earlier second
    write(tmp_path, first_step, [first_step + 1, first_step + 2], loss=2.0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("train/loss")] == expected


def test_without_a_terminal_every_record_is_a_printed_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsLog(tmp_path, "align", 6, 0) as log:
        log.record(2, "train", {"loss": 0.51239, "learning_rate": 1e-4})
        log.message("a [bold]message[/bold]")
    output = capsys.readouterr().out
    assert "align 2/6 train: loss 0.5124  learning_rate 0.0001\n" in output
    assert "a [bold]message[/bold]\n" in output
