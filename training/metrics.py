"""What a run reports: lines of JSON, trackers, and live progress in the terminal."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.config import TrackerName
from training.trackers import open_trackers

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Record figures by step, under `train` or `validation`, wherever someone may look.

    `metrics.jsonl` gets one object a record; on resuming, records of steps after the resumed
    one are dropped, so the file reads like that of an uninterrupted run. Figures with a slash in
    their name are not shown in the terminal.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        steps: int,
        first_step: int,
        trackers: tuple[TrackerName, ...] = ("tensorboard",),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        kept = [r for r in read_metrics(path) if r["step"] <= first_step] if first_step else []
        self._file = path.open("w")
        for record in kept:
            self._file.write(json.dumps(record) + "\n")
        self.console = Console(file=sys.stdout)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(stage, total=steps, completed=first_step, figures="")
        self._stage = stage
        self._steps = steps
        self._trackers = open_trackers(trackers, folder, first_step, self.message)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        for tracker in self._trackers:
            tracker.close()
        self._file.close()

    def record(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        """Write figures of a step (the number of steps done)."""
        self._file.write(json.dumps({"step": step, "split": split, **figures}) + "\n")
        self._file.flush()
        named = {f"{split}/{name}": value for name, value in figures.items()}
        for tracker in self._trackers:
            tracker.record(step, named)
        shown = {name: value for name, value in figures.items() if "/" not in name}
        line = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if split == "train":
            self._progress.update(self._task, completed=step, figures=line)
        if split != "train" or not self.console.is_terminal:
            self.message(f"{self._stage} {step}/{self._steps} {split}: {line}")

    def message(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class NoLog:
    """What the ranks beside the first one record: nothing."""

    def record(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        """Do nothing."""

    def message(self, line: str) -> None:
        """Do nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order; empty if there is none."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
