"""Writing shards: tar files of samples with a manifest that says what they must hold."""

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import track

from data.schema import RawSample, Reject, Sample, first_fault
from vlm.errors import UserError
from vlm.images import ImageError, image_extension, read_image

MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"

# What webdataset keeps whole as the name of a sample; see `data.schema.sample_key`.
_KEY = re.compile(r"(?!__)[\w%~-][\w%~/-]*", re.ASCII)


class ShardEntry(BaseModel):
    """What one shard must hold. name: of the file beside the manifest, never a path or a URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar$")
    num_samples: int = Field(ge=1)
    num_bytes: int = Field(ge=1)
    sha256: str


class Manifest(BaseModel):
    """What a folder of shards holds; equal data have equal manifests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    num_samples: int
    num_images: int
    num_turns: int
    num_rejects: int

    @property
    def sha256(self) -> str:
        """A fingerprint of the data, in hexadecimal: of every byte of the shards."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read the manifest of a folder of shards.

        Raises:
            UserError: there is none, or it is not one.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            inside = [str(found.parent) for found in sorted(folder.glob(f"*/{MANIFEST_NAME}"))]
            hint = (
                f"name one of {', '.join(inside)}"
                if inside
                else "give a folder that `vlm shards pack` wrote"
            )
            raise UserError(f"{folder} holds no {MANIFEST_NAME}: {hint}")
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UserError(f"{path} is not a manifest: {first_fault(error)}") from None


def pack(
    samples: Iterable[RawSample | Reject],
    out: Path,
    samples_per_shard: int = 1000,
    total: int | None = None,
) -> Manifest:
    """Write samples into shards, and what could not be used into `rejects.jsonl`.

    The folder appears all at once when everything is written. Pictures are decoded to see that
    they can be, and copied byte for byte; equal samples give equal shards, byte for byte.

    Args:
        samples: in the order in which they are written.
        out: the folder to make; it may exist if it is empty.
        total: how many samples come, for a progress bar on stderr; None shows no bar.
    Returns:
        the manifest that was written.
    Raises:
        UserError: `out` holds something already or cannot be written, or no sample could be used.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard must be at least 1, not {samples_per_shard}")
    require_new(out)
    if total is not None:
        console = Console(stderr=True)
        samples = track(samples, f"packing {out.name}", total, console=console)
    unfinished = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        manifest = _write_folder(samples, unfinished, samples_per_shard)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:  # an error or an interruption leaves nothing half-written behind
        shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def require_new(out: Path) -> None:
    """Check that a folder can be made or filled.

    Raises:
        UserError: something is there already.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is not empty: give a new folder, or remove it first")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reject_summary(rejects: Iterable[Reject], num_examples: int = 3) -> list[str]:
    """Count rejects by kind, the most frequent first, each with its first few as examples."""
    groups: dict[str, list[Reject]] = {}
    for reject in rejects:
        groups.setdefault(reject.kind, []).append(reject)
    lines = []
    for kind, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(group)} x {kind}")
        lines += [f"    {_printable(f'{r.key}: {r.reason}')}" for r in group[:num_examples]]
        if len(group) > num_examples:
            lines.append(f"    and {len(group) - num_examples} more")
    return lines


def read_rejects(folder: Path) -> list[Reject]:
    """The inputs that were left out when `folder` was packed."""
    lines = (folder / REJECTS_NAME).read_text("utf-8").splitlines()
    return [Reject(**json.loads(line)) for line in lines]


def _write_folder(
    samples: Iterable[RawSample | Reject], folder: Path, samples_per_shard: int
) -> Manifest:
    rejects: list[Reject] = []
    usable = _usable(samples, rejects)
    entries: list[ShardEntry] = []
    num_images = num_turns = 0
    while first := next(usable, None):
        shard = itertools.chain([first], itertools.islice(usable, samples_per_shard - 1))
        path = folder / f"shard-{len(entries):06d}.tar"
        written = _write_shard(path, shard)
        entries.append(_entry(path, len(written)))
        num_images += sum(sample.num_images for sample in written)
        num_turns += sum(sample.num_turns for sample in written)
    if not entries:
        raise UserError(f"no sample could be used: {_why_none(rejects)}")
    manifest = Manifest(
        shards=tuple(entries),
        num_samples=sum(entry.num_samples for entry in entries),
        num_images=num_images,
        num_turns=num_turns,
        num_rejects=len(rejects),
    )
    lines = [json.dumps({"key": r.key, "reason": r.reason}, ensure_ascii=False) for r in rejects]
    # Half a surrogate pair out of somebody's JSON goes back as the escape that it was.
    (folder / REJECTS_NAME).write_text(
        "".join(f"{line}\n" for line in lines), "utf-8", "backslashreplace"
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
    return manifest


def _why_none(rejects: list[Reject]) -> str:
    if not rejects:
        return "the source is empty"
    counts = Counter(reject.kind for reject in rejects).most_common(5)
    reasons = "; ".join(f"{count} x {kind}" for kind, count in counts)
    first = _printable(f"{rejects[0].key}: {rejects[0].reason}")
    return f"{reasons} (the first: {first})"


def _printable(text: str, max_length: int = 200) -> str:
    # Names and texts of others may hold line breaks and commands to the terminal.
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= max_length else f"{clean[:max_length]}..."


def _usable(
    samples: Iterable[RawSample | Reject], rejects: list[Reject]
) -> Iterator[tuple[RawSample, list[str]]]:
    """Yield what can be written, with its pictures' extensions; append the rest to `rejects`."""
    keys: set[str] = set()
    known: dict[bytes, str | ImageError] = {}
    for item in samples:
        verdict = item if isinstance(item, Reject) else _inspect(item, keys, known)
        if isinstance(verdict, Reject):
            rejects.append(verdict)
        else:
            assert isinstance(item, RawSample)
            keys.add(item.key)
            yield item, verdict


def _inspect(
    item: RawSample, keys: set[str], known: dict[bytes, str | ImageError]
) -> Reject | list[str]:
    if not _KEY.fullmatch(item.key):
        return Reject(item.key, f"bad key: {item.key!r} has characters that sample_key encodes")
    if item.key in keys:
        return Reject(item.key, "duplicate key: another sample before it has the same")
    if len(item.images) != item.sample.num_images:
        counts = f"{len(item.images)} for {item.sample.num_images} places in the messages"
        return Reject(item.key, f"number of pictures: {counts}")
    extensions = []
    for index, content in enumerate(item.images):
        # Many questions may show one picture; it is decoded once.
        digest = hashlib.sha256(content).digest()
        if digest not in known:
            known[digest] = _decode(content)
        found = known[digest]
        if isinstance(found, ImageError):
            return Reject(item.key, f"bad picture: number {index}: {found}")
        extensions.append(found)
    return extensions


def _decode(content: bytes) -> str | ImageError:
    try:
        # Pillow warns of broken metadata in pictures that it reads all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_image(content)
            return image_extension(content)
    except ImageError as error:
        return error


def _write_shard(path: Path, shard: Iterable[tuple[RawSample, list[str]]]) -> list[Sample]:
    written = []
    # Old GNU headers hold nothing of this machine or the time of writing.
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for item, extensions in shard:
            _add(tar, f"{item.key}.json", item.sample.to_json().encode())
            for index, (content, extension) in enumerate(zip(item.images, extensions, strict=True)):
                _add(tar, f"{item.key}.{index}.{extension}", content)
            written.append(item.sample)
    return written


def _entry(path: Path, num_samples: int) -> ShardEntry:
    return ShardEntry(
        name=path.name,
        num_samples=num_samples,
        num_bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # TarInfo's defaults: time 0, owner 0, no names, mode 644; so equal samples give equal bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
