"""Where figures go beside `metrics.jsonl`: TensorBoard, wandb, trackio.

Each tracker runs in a thread of its own, so that one whose server is slow or away neither stops a
run nor holds it up: it is warned of once, and the figures are in `metrics.jsonl`.
"""

import os
import queue
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from training.config import TrackerName
from vlm.errors import UserError

# How long the end of a run waits for a tracker to send what it has.
CLOSE_S = 30.0
PROJECT = "vlm"


class Tracker(Protocol):
    """Something that shows figures by step."""

    def record(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder's `tensorboard/`; those of steps after the first are purged."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Wandb:
    """A run at wandb, or wherever its environment variables point to; continued on resuming.

    The project is `vlm` unless WANDB_PROJECT names another.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=run_id(folder),
            resume="allow",
            dir=str(folder),
            settings=wandb.Settings(init_timeout=CLOSE_S, silent=True),
        )

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class Trackio:
    """A run in trackio's project `vlm`, kept on this machine unless its variables say otherwise."""

    def __init__(self, folder: Path, first_step: int) -> None:
        import trackio

        self._run = trackio.init(project=PROJECT, name=run_id(folder), resume="allow")

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


TRACKERS: Mapping[TrackerName, Callable[[Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def run_id(folder: Path) -> str:
    """The name of a run folder among those of others, the same after a resumption."""
    return "-".join(folder.resolve().parts[-2:])


def check_trackers(names: tuple[TrackerName, ...]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        UserError: names the first that is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"trackers has {name}, and the package {name} is not installed: "
                f"pip install {name} (or vlm[track]), or take it out"
            )


class TrackerThread:
    """A tracker in a thread of its own.

    Args:
        make: opens the tracker; called in the thread.
        say: told once if the tracker fails, and at the end if it does not come to one.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._given: queue.SimpleQueue[tuple[int, Mapping[str, float]] | None]
        self._given = queue.SimpleQueue()
        # A daemon, for nobody can end a call that waits for a server.
        self._thread = threading.Thread(target=self._run, args=(make,), name=name, daemon=True)
        self._thread.start()

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand figures over; returns at once."""
        self._given.put((step, figures))

    def close(self) -> None:
        """Let the tracker come to its end, and wait for that."""
        self._given.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._say(
                f"warning: {self._name} has not sent all figures within {CLOSE_S:.0f} s; "
                "metrics.jsonl has them"
            )

    def _run(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            while (given := self._given.get()) is not None:
                tracker.record(*given)
            tracker.close()
        except Exception as error:  # whatever a service may come up with
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._say(f"warning: no figures go to {self._name}: {reason}; metrics.jsonl has them")


def open_trackers(
    names: tuple[TrackerName, ...], folder: Path, first_step: int, say: Callable[[str], None]
) -> list[TrackerThread]:
    """Start the trackers of a run."""

    def opener(name: TrackerName) -> Callable[[], Any]:
        return lambda: TRACKERS[name](folder, first_step)

    return [TrackerThread(name, opener(name), say) for name in names]
