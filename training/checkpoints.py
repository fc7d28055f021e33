"""Checkpoint folders: whole or not there, and verified before they are used.

A checkpoint is a folder `step-00000100` of safetensors and JSON files, with a `manifest.json` that
has the size and sha256 of each. What the files hold is up to those who write them
(training/state.py). It grows under a temporary name, every file is flushed to the disk, and a
rename makes it a checkpoint; only then are older ones deleted. So whatever kills a run, and
whenever, the newest folder of that name is whole.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from data.pack import file_sha256
from vlm.errors import UserError
from vlm.weights.folder import write_json

MANIFEST_FILE = "manifest.json"
NAME = re.compile(r"step-(\d{8,})")
# Nothing else is ever opened: a pickle would run code.
SUFFIXES = (".safetensors", ".json")


class FileFacts(BaseModel):
    """What a file must be for its checkpoint to be whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """Every file of a checkpoint but the manifest itself, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    files: dict[str, FileFacts]


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first; they are not verified."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step at which a checkpoint was written."""
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def open_temporary(path: Path, num_bytes: int) -> None:
    """Make the folder in which checkpoint `path` grows, after what a kill has left is gone.

    Raises:
        UserError: the disk has less room than `num_bytes`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes:
        raise UserError(f"only {free:,} bytes are free; nothing was written")
    temporary_path(path).mkdir()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run has left half written or half deleted."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def temporary_path(path: Path) -> Path:
    """The folder in which a checkpoint grows."""
    return path.with_name(f".{path.name}.writing")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def seal(temporary: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """Flush files to the disk; return what the manifest says of them."""
    facts = {}
    for name in names:
        path = temporary / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        facts[name] = FileFacts(num_bytes=path.stat().st_size, sha256=file_sha256(path))
    return facts


def commit(temporary: Path, manifest: CheckpointManifest) -> Path:
    """Make a checkpoint of a temporary folder whose files are all sealed; return its path."""
    write_json(temporary / MANIFEST_FILE, manifest.model_dump())
    seal(temporary, [MANIFEST_FILE])
    _flush_folder(temporary)
    path = checkpoint_path(temporary.parent, manifest.step)
    if path.exists():  # the same step, saved by a run that this one repeats
        _remove(path)
    temporary.rename(path)
    _flush_folder(path.parent)
    return path


def prune(folder: Path, keep: int, also: Iterable[Path] = ()) -> None:
    """Delete all checkpoints but the newest `keep` and those of `also`."""
    kept = {*list_checkpoints(folder)[-keep:], *also}
    for path in list_checkpoints(folder):
        if path not in kept:
            _remove(path)


def verify(path: Path) -> CheckpointManifest:
    """Check every file of a checkpoint against its manifest, and that there is no other.

    Raises:
        UserError: names the first file that is missing, damaged, or not of a checkpoint.
    """
    try:
        manifest = CheckpointManifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {MANIFEST_FILE}: {error}") from error
    for name in sorted(file.name for file in path.iterdir()):
        if not name.endswith(SUFFIXES):
            raise UserError(
                f"checkpoint {path} is refused: {name} is neither safetensors nor JSON, "
                "and nothing else is ever opened"
            )
        if name != MANIFEST_FILE and name not in manifest.files:
            raise UserError(f"checkpoint {path} is refused: its {MANIFEST_FILE} has no {name}")
    for name, facts in manifest.files.items():
        problem = _problem(path / name, facts)
        if problem:
            raise UserError(f"checkpoint {path} is damaged: {name} {problem}")
    return manifest


def newest_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Find the newest checkpoint that is whole; None where there is none at all.

    Damaged ones that are newer are told to `say` and put aside under another name. What a killed
    run has left is deleted.

    Raises:
        UserError: there are checkpoints, and none of them is whole.
    """
    remove_leftovers(folder)
    problems: dict[Path, UserError] = {}
    for path in reversed(list_checkpoints(folder)):
        try:
            verify(path)
        except UserError as error:
            problems[path] = error
            continue
        for damaged, problem in problems.items():
            aside = damaged.with_name(f"damaged-{damaged.name}")
            shutil.rmtree(aside, ignore_errors=True)
            damaged.rename(aside)
            say(f"{problem}; it is {aside} now, and {path} takes its place")
        return path
    if problems:
        raise UserError(
            f"no checkpoint in {folder} is whole: {'; '.join(map(str, problems.values()))}; "
            "start anew in another run folder (out=...)"
        )
    return None


def _problem(path: Path, facts: FileFacts) -> str | None:
    if not path.is_file():
        return "is missing"
    num_bytes = path.stat().st_size
    if num_bytes != facts.num_bytes:
        return f"has {num_bytes:,} bytes, needed: {facts.num_bytes:,}"
    if file_sha256(path) != facts.sha256:
        return "has another sha256 than when it was written"
    return None


def _remove(path: Path) -> None:
    """Delete a checkpoint; one that is half deleted does not have its name any more."""
    doomed = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
