"""The folder in which a pack grows, and what becomes of it after an error or a kill.

It lies beside OUT as `.OUT.unfinished` and becomes OUT, whole, by a rename at the end. `data.pack`
keeps a state beside each whole shard in it, so that a pack of the same plan can continue there.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vlm.errors import UserError

PLAN_NAME = "plan.json"
LOCK_NAME = "lock"
STATE_SUFFIX = ".state"


def require_new(out: Path, resume: bool = False) -> None:
    """Check that a folder can be made or filled.

    Raises:
        UserError: something is there already, or a pack of it was begun and not finished.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is not empty: give a new folder, or remove it first")
    unfinished = _unfinished(out)
    if unfinished.exists() and not resume:
        raise UserError(
            f"{out} was begun and not finished: continue with --resume, or remove {unfinished}"
        )


@contextmanager
def staged(out: Path, plan: str, resume: bool, keep: bool) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends without an error.

    Nothing half-written is ever seen at `out`.

    Args:
        plan: what decides the bytes of the shards; one line.
        resume: keep what a pack of the same plan left behind; else it is removed.
        keep: after an error or an interruption whole shards stay, if there are any.
    Raises:
        UserError: another process packs the same folder, it was begun by another plan, or it
            cannot be written.
    """
    require_new(out, resume=True)
    folder = _unfinished(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, out):
            _prepare(folder, plan, resume)
            try:
                yield folder
            except BaseException as error:
                _after_failure(folder, out, error, keep)
                raise
            _finish(folder)
        (folder / LOCK_NAME).unlink(missing_ok=True)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except OSError as error:
        hint = "; the whole shards are kept, --resume continues" if folder.exists() else ""
        raise UserError(f"{out} cannot be written: {error.strerror or error}{hint}") from error


def _unfinished(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    try:
        with FileLock(folder / LOCK_NAME, timeout=0):
            yield
    except Timeout:
        raise UserError(f"another process is packing {out}: wait for it, or stop it") from None


def _prepare(folder: Path, plan: str, resume: bool) -> None:
    path = folder / PLAN_NAME
    if not resume:
        _remove_all(folder)
    elif path.is_file() and path.read_text("utf-8") != plan:
        raise UserError(
            f"{folder} was begun with other data or options: continue with the same, or remove it"
        )
    path.write_text(plan, "utf-8")


def _remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


def _after_failure(folder: Path, out: Path, error: BaseException, keep: bool) -> None:
    num_whole = len(list(folder.rglob(f"*.tar{STATE_SUFFIX}")))
    if not (num_whole and keep):
        shutil.rmtree(folder, ignore_errors=True)
    elif isinstance(error, UserError | KeyboardInterrupt):
        kept = f"{num_whole} whole shards of {out} are kept: --resume continues"
        error.args = (f"{error}; {kept}" if str(error) else kept,)


def _finish(folder: Path) -> None:
    for path in folder.rglob(f"*{STATE_SUFFIX}"):
        path.unlink()
    (folder / PLAN_NAME).unlink()
