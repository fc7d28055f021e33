"""Saving beside the training: the loop waits for a copy in memory, a thread does the rest."""

import shutil
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError

from training.checkpoints import (
    CheckpointManifest,
    FileFacts,
    checkpoint_path,
    commit,
    newest_whole,
    open_temporary,
    prune,
    seal,
    temporary_path,
)
from training.distributed import gather, host_group, is_first_rank
from training.state import (
    Payload,
    Progress,
    Snapshot,
    config_changes,
    read_state,
    write_state,
)
from vlm.errors import UserError
from vlm.weights.comparison import listed


class Saver:
    """The checkpoints of a run. Every rank has one, and all call its methods at the same steps.

    Each rank writes its own files into the temporary folder; the first one writes the manifest and
    renames when all have.

    Args:
        config: what must not change between a checkpoint and the run that resumes it.
        keep: checkpoints that stay, beside the best one.
    """

    def __init__(
        self, folder: Path, payload: Payload, config: Mapping[str, Any], keep: int
    ) -> None:
        self.folder = folder
        self.payload = payload
        self.config = config
        self.keep = keep
        self.last: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # Ranks agree in the thread, beside whatever the loop exchanges: on a group of its own.
        self._group = host_group()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return checkpoint_path(self.folder, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let what is being written come to its end, also when the run fails."""
        try:
            self.wait()
        except UserError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def save(self, progress: Progress) -> Path:
        """Begin to write a checkpoint, after the one before it is complete; return its path.

        Raises:
            UserError: the one before it could not be written.
        """
        self.wait()
        snapshot = self.payload.snapshot()
        self._thread = threading.Thread(
            target=self._run, args=(snapshot, progress), name="checkpoint"
        )
        self._thread.start()
        return checkpoint_path(self.folder, progress.step)

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; `wait` tells why."""
        return self._error is not None

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def resume(self, say: Callable[[str], None], force: bool = False) -> Progress | None:
        """Restore the newest checkpoint that is whole; None where there is none at all.

        Args:
            say: told of damaged checkpoints, of changed settings, and of where the run goes on.
            force: goes on under changed settings.
        Raises:
            UserError: no checkpoint is whole, or settings have changed, or it does not fit.
        """
        path = self._together(partial(newest_whole, self.folder, say), first=True)[0]
        if path is None:
            return None
        progress, config = read_state(path)
        changes = config_changes(config, self.config)
        if changes and not force:
            raise UserError(
                f"the configuration has changed since {path}: {listed(changes)}; "
                "put it back, go on nevertheless with --force, or start anew in another run folder "
                "(out=...)"
            )
        for change in changes:
            say(f"changed since {path}: {change}")
        self.payload.restore(path)
        self.last = path
        return progress

    def _run(self, snapshot: Snapshot, progress: Progress) -> None:
        try:
            self._write(snapshot, progress)
        except BaseException as error:  # raised again where the loop waits
            self._error = error

    def _write(self, snapshot: Snapshot, progress: Progress) -> None:
        path = checkpoint_path(self.folder, progress.step)
        temporary = temporary_path(path)
        num_bytes = sum(gather(snapshot.num_bytes, self._group))

        def write() -> dict[str, FileFacts]:
            names = snapshot.write(temporary)
            if is_first_rank():
                names = names + write_state(temporary, progress, self.config)
            return seal(temporary, names)

        try:
            self._together(partial(open_temporary, path, num_bytes), first=True)
            parts = self._together(write)
            files = {name: facts for part in parts for name, facts in part.items()}
            manifest = CheckpointManifest(step=progress.step, files=files)
            self._together(partial(commit, temporary, manifest), first=True)
        except UserError as error:
            if is_first_rank():
                shutil.rmtree(temporary, ignore_errors=True)
            kept = f"the last one is {self.last}" if self.last else "there is none before it"
            raise UserError(
                f"checkpoint {path} needs {num_bytes:,} bytes and cannot be written: {error}; "
                f"{kept}"
            ) from error
        self.last = path
        if is_first_rank():
            best = [checkpoint_path(self.folder, progress.best.step)] if progress.best else []
            prune(self.folder, self.keep, best)

    def _together(self, work: Callable[[], Any], first: bool = False) -> list[Any]:
        """Do something on all ranks, or on the first one; return the results when all have done it.

        Raises:
            UserError: it failed on any of them.
        """
        result: Any = None
        problem: str | None = None
        try:
            if not first or is_first_rank():
                result = work()
        except (OSError, SafetensorError, UserError) as error:
            problem = str(error)
        results = gather((result, problem), self._group)
        for _, found in results:
            if found is not None:
                raise UserError(found)
        return [result for result, _ in results]
