"""How a run is told to stop: SIGTERM or SIGUSR1, from a person or from a cluster's scheduler."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

# What a process that was told to stop, and saved, exits with: sysexits' EX_TEMPFAIL, "try again".
STOPPED_EXIT_CODE = 75
# What one exits with that was told twice: a shell's code for a process ended by SIGTERM.
KILLED_EXIT_CODE = 128 + signal.SIGTERM
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class RunStopped(Exception):
    """A run was told to stop, and has saved where it stands."""

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"saved step {step}; go on with --resume auto")
        self.step = step
        self.checkpoint = checkpoint


class StopSignals:
    """Within this context the first signal is only noted; a SIGTERM after it ends the process.

    Outside of the main thread signals cannot be caught, and keep their usual meaning.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGTERM:
            # Nothing may delay this: the checkpoint before this one is whole at any moment.
            os._exit(KILLED_EXIT_CODE)
        self.received = signal.Signals(number).name
