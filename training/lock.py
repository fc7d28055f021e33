"""One run a folder: a lock that the system gives back when the process ends, however it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.distributed import gather, is_first_rank
from vlm.errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run folder, which is made if need be; the first rank does it for all.

    Raises:
        UserError: another run holds it.
    """
    lock = FileLock(out / LOCK_FILE)
    problem = None
    if is_first_rank():
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            problem = f"another run is writing to {out}; wait for its end, or choose another out="
    problem = gather(problem)[0]
    if problem is not None:
        raise UserError(problem)
    try:
        yield
    finally:
        lock.release()
