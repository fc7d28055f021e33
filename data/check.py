"""Checking shards against their manifest and index, and every picture in them."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from data.index import ShardIndex, index_name
from data.pack import MANIFEST_NAME, Manifest, ShardEntry, file_sha256
from data.scan import scan_shard
from data.schema import RawSample, Reject
from data.shards import ShardSet
from data.storage import MissingFile
from vlm.errors import UserError
from vlm.images import ImageError, read_image


@dataclass(frozen=True)
class CheckReport:
    """What was found in a folder of shards. faults: one line each."""

    manifest: Manifest
    faults: list[str]


def shard_folders(folder: Path) -> list[Path]:
    """The folder itself if it has a manifest, otherwise those directly in it that have one."""
    if (folder / MANIFEST_NAME).is_file():
        return [folder]
    inside = [found.parent for found in sorted(folder.glob(f"*/{MANIFEST_NAME}"))]
    return inside or [folder]


def check_folder(folder: Path, progress: bool = False) -> CheckReport:
    """Compare a folder of shards with its manifest and decode every picture.

    Args:
        progress: show a bar on stderr.
    Raises:
        UserError: there is no manifest to compare with.
    """
    manifest = Manifest.read(folder)
    listed = {entry.name for entry in manifest.shards}
    faults = [
        f"{path} is not in the manifest"
        for path in sorted(folder.glob("*.tar"))
        if path.name not in listed
    ]
    shards = ShardSet.open(folder)
    entries = track(
        list(enumerate(manifest.shards)),
        f"checking {folder.name}",
        console=Console(stderr=True),
        disable=not progress,
    )
    counts = _Counts({})
    for number, entry in entries:
        faults += _check_file(folder / entry.name, entry)
        places = ((number, place) for place in range(entry.num_samples))
        faults += _check_samples(folder / entry.name, shards.read_each(places), counts)
    if not faults:
        found = (len(counts.keys), counts.num_images, counts.num_turns)
        stated = (manifest.num_samples, manifest.num_images, manifest.num_turns)
        if found != stated:
            faults.append(
                f"{folder} holds {found[0]} samples, {found[1]} pictures, {found[2]} answers; "
                f"the manifest says {stated[0]}, {stated[1]}, {stated[2]}"
            )
    return CheckReport(manifest, faults)


@dataclass
class _Counts:
    keys: dict[str, str]  # the shard of each key
    num_images: int = 0
    num_turns: int = 0


def _check_file(path: Path, entry: ShardEntry) -> list[str]:
    """Compare a shard with its entry in the manifest and with its index."""
    try:
        index = scan_shard(str(path))
    except MissingFile:
        return []  # as every sample of it says
    faults = []
    sha256 = file_sha256(path)
    if sha256 != entry.sha256:
        faults.append(
            f"{path} has sha256 {sha256[:12]}...; the manifest says {entry.sha256[:12]}..."
        )
    if index.fault is not None:
        faults.append(f"{path} {index.fault}")
    beside = path.with_name(index_name(path.name))
    if beside.is_file():
        try:
            if ShardIndex.parse(beside.read_bytes(), entry.sha256) != index:
                faults.append(f"{beside} differs from the headers of the shard: remove it")
        except UserError as error:
            faults.append(f"{beside} {error}: remove it")
    return faults


def _check_samples(path: Path, found: Iterable[RawSample | Reject], counts: _Counts) -> list[str]:
    faults = []
    for raw in found:
        if isinstance(raw, Reject):
            faults.append(f"{raw.key}: {raw.reason}")
            continue
        if raw.key in counts.keys:
            faults.append(f"{path}: {raw.key} is already in {counts.keys[raw.key]}")
        counts.keys[raw.key] = path.name
        counts.num_images += len(raw.images)
        counts.num_turns += raw.sample.num_turns
        faults += [
            f"{path}: {raw.key}: picture {index}: {reason}"
            for index, content in enumerate(raw.images)
            if (reason := _picture_fault(content)) is not None
        ]
    return faults


def _picture_fault(content: bytes) -> str | None:
    try:
        # Pillow warns of broken metadata in pictures that it reads all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_image(content)
    except ImageError as error:
        return str(error)
    return None
