"""Trackers: what they get, and that nothing they do or leave undone stops a run."""

import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from training import trackers
from training.metrics import METRICS_FILE, MetricsLog, read_metrics
from training.trackers import TrackerThread, check_trackers, run_id
from vlm.errors import UserError


class Notes:
    """A tracker that notes what it is told, and does something else as well."""

    def __init__(self, record: Callable[[], Any] = list, close: Callable[[], Any] = list) -> None:
        self.noted: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False
        self._record, self._close = record, close

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        self._record()
        self.noted.append((step, figures))

    def close(self) -> None:
        self._close()
        self.closed = True


def refuse() -> None:
    """Turn to a server that is not there: nothing listens at the discard port."""
    socket.create_connection(("127.0.0.1", 9), timeout=5)


def test_figures_arrive_in_order_and_the_tracker_is_closed() -> None:
    tracker, said = Notes(), list[str]()
    thread = TrackerThread("notes", lambda: tracker, said.append)
    for step in range(50):
        thread.record(step, {"train/loss": 0.5})
    thread.close()
    assert [step for step, _ in tracker.noted] == list(range(50))
    assert tracker.closed and not said


@pytest.mark.parametrize("when", ["open", "record", "close"])
def test_a_tracker_that_fails_is_warned_of_once(when: str) -> None:
    def make() -> Notes:
        if when == "open":
            refuse()
        return Notes(**{when: refuse})

    said: list[str] = []
    thread = TrackerThread("notes", make, said.append)
    for step in range(3):
        thread.record(step, {"loss": 0.5})
    thread.close()
    (line,) = said
    assert line.startswith("warning: no figures go to notes: [Errno 111] Connection refused; ")


def test_a_tracker_that_hangs_holds_up_neither_steps_nor_for_long_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    never, said = threading.Event(), list[str]()
    thread = TrackerThread("notes", lambda: Notes(record=lambda: never.wait(20)), said.append)
    for step in range(1000):
        thread.record(step, {"loss": 0.5})
    thread.close()
    assert said == ["warning: notes has not sent all figures within 0 s; metrics.jsonl has them"]
    never.set()


def test_metrics_jsonl_is_there_without_any_tracker(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "align", 6, 0, trackers=()) as log:
        log.record(1, "train", {"loss": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]
    assert read_metrics(tmp_path / METRICS_FILE) == [{"step": 1, "split": "train", "loss": 0.5}]


def test_figures_of_parts_are_written_but_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsLog(tmp_path, "align", 6, 0, trackers=()) as log:
        log.record(1, "train", {"loss": 0.5, "gradient_norm/encoder": 0.25})
    assert read_metrics(tmp_path / METRICS_FILE)[0]["gradient_norm/encoder"] == 0.25
    assert capsys.readouterr().out == "align 1/6 train: loss 0.5\n"


def test_a_package_that_is_not_there_is_named_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trackers(("tensorboard",))
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trackers has wandb, .* pip install wandb"):
        check_trackers(("wandb",))


def test_run_folders_of_the_same_name_are_told_apart() -> None:
    assert (
        run_id(Path("/runs/one/finetune")) == "one-finetune" != run_id(Path("/runs/two/finetune"))
    )
