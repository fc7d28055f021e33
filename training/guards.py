"""What a run does about losses and gradients that no training survives.

A loss that is no number stops the run before the update. A gradient that is none costs the step,
and too many of them in a row the run. A loss far above the usual is written down with its samples.
"""

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.distributed import gather, is_first_rank
from training.metrics import read_metrics
from vlm.errors import UserError

SPIKES_FILE = "spikes.jsonl"
STOPPED_FILE = "bad_step.json"
SKIPPED_FILE = "skipped_steps.jsonl"
# Steps whose losses say what is usual, and how many are enough to say anything.
USUAL_STEPS = 100
ENOUGH_STEPS = 20
# A spike is this many robust standard deviations above the median of those losses. The deviation is
# 1.4826 times the median distance from the median (that of a normal distribution), and at least a
# hundredth of the median, so that a run that has converged does not report its noise.
SPIKE_DEVIATIONS = 8.0
NORMAL_DEVIATION = 1.4826
LEAST_DEVIATION = 0.01
SHOWN_KEYS = 8


class Guards:
    """Watches the steps of a run. Every rank has one, and calls it at every step.

    Args:
        folder: where the reports go.
        max_skipped_steps: so many skipped steps in a row stop the run.
    """

    def __init__(self, folder: Path, max_skipped_steps: int) -> None:
        self.folder = folder
        self.max_skipped_steps = max_skipped_steps
        self.skipped = self.skipped_in_a_row = 0
        self._losses: deque[float] = deque(maxlen=USUAL_STEPS)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "losses": list(self._losses),
        }

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Take `state` out of the checkpoint of a step; reports of later steps are dropped."""
        self.skipped = state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self._losses = deque(state["losses"], maxlen=USUAL_STEPS)
        for path in (self.folder / SPIKES_FILE, self.folder / SKIPPED_FILE):
            if is_first_rank() and path.is_file():
                kept = [record for record in read_metrics(path) if record["step"] <= step]
                path.write_text("".join(map(_line, kept)), encoding="utf-8")

    def check_loss(self, step: int, loss: float, keys: Sequence[str]) -> None:
        """Stop a run whose loss is no number.

        Args:
            step: the one that was about to be made, from 1.
            keys: of this rank's samples.
        Raises:
            UserError: names the samples, and the file that has all of them.
        """
        if math.isfinite(loss):
            return
        everyones = _everyones(keys)
        path = self.folder / STOPPED_FILE
        self._write(path, "w", {"step": step, "loss": str(loss), "keys": everyones})
        raise UserError(
            f"the loss of step {step} is {loss}; nothing was updated; samples: "
            f"{_some(everyones)} ({path} has all); lower optim.learning_rate or look at "
            "these samples"
        )

    def check_gradient(self, step: int, norm: float, keys: Sequence[str]) -> bool:
        """Return whether the gradient of a step can be used; count it where it cannot.

        Raises:
            UserError: it is one too many in a row.
        """
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        everyones = _everyones(keys)
        path = self.folder / SKIPPED_FILE
        self._write(path, "a", {"step": step, "gradient_norm": str(norm), "keys": everyones})
        if self.skipped_in_a_row >= self.max_skipped_steps:
            raise UserError(
                f"the gradient norm of step {step} is {norm}, and {self.skipped_in_a_row} step(s) "
                f"in a row were skipped for that (optim.max_skipped_steps "
                f"{self.max_skipped_steps}); nothing was updated; samples: {_some(everyones)} "
                f"({path} has all); lower optim.learning_rate or look at these samples"
            )
        return False

    def watch_loss(self, step: int, loss: float, keys: Sequence[str]) -> float | None:
        """Report a loss far above those of the last steps; return the usual one if it is."""
        usual = None
        if len(self._losses) >= ENOUGH_STEPS:
            median = statistics.median(self._losses)
            spread = statistics.median(abs(value - median) for value in self._losses)
            deviation = max(NORMAL_DEVIATION * spread, LEAST_DEVIATION * abs(median))
            limit = median + SPIKE_DEVIATIONS * deviation
            if loss > limit:
                usual = median
                content = {"step": step, "loss": loss, "usual": median, "limit": limit}
                self._write(self.folder / SPIKES_FILE, "a", {**content, "keys": _everyones(keys)})
        self._losses.append(loss)
        return usual

    @staticmethod
    def _write(path: Path, mode: str, content: Mapping[str, Any]) -> None:
        if is_first_rank():
            with path.open(mode, encoding="utf-8") as file:
                file.write(_line(content))


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _everyones(keys: Sequence[str]) -> list[str]:
    return [key for of_rank in gather(list(keys)) for key in of_rank]


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - SHOWN_KEYS
    return ", ".join(keys[:SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")
