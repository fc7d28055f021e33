"""Which samples every step consumed, as lines of JSON: `{"step": 1, "batches": [[KEY, ...], ...]}`.

The batches of a step stand in the order of their streams, whichever rank read them, so the logs of
two runs can be compared line by line.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from training.distributed import gather, is_first_rank
from training.metrics import read_metrics

SAMPLES_FILE = "samples.jsonl"


class SampleLog:
    """Write the keys of each step's samples; on resuming, later steps' lines are dropped."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._file = None
        if is_first_rank():
            path = folder / SAMPLES_FILE
            kept = [r for r in read_metrics(path) if r["step"] <= first_step] if first_step else []
            self._file = path.open("w", encoding="utf-8")
            for record in kept:
                self._file.write(json.dumps(record) + "\n")

    def record(self, step: int, batches: Sequence[Sequence[str]]) -> None:
        """Add a step: this rank's batches, one of each of its streams. Every rank must call it."""
        ranks = gather([list(keys) for keys in batches])
        if self._file is not None:
            in_turn = [keys for together in zip(*ranks, strict=True) for keys in together]
            self._file.write(json.dumps({"step": step, "batches": in_turn}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
