"""Writing shards: tar files of samples with a manifest that says what they must hold.

A shard is written under a temporary name and renamed, then in the same way its `ShardState`: how
much of the source had been read when it was full. So a shard with a state is whole and has an
index, and after a kill a pack continues behind the last of them; see `data.staging` for the folder.
"""

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import track

from data.features import FeatureRecord
from data.index import ShardIndex, index_name
from data.pictures import Pictures
from data.prepare import Item, Prepared, prepare_samples
from data.rejects import why_none, write_rejects
from data.schema import RawSample, Reject, first_fault
from data.staging import STATE_SUFFIX, staged
from data.storage import PATIENT, MissingFile, Patience, join, read_file
from vlm.errors import UserError

MANIFEST_NAME = "manifest.json"


class ShardEntry(BaseModel):
    """What one shard must hold. name: of the file beside the manifest, never a path or a URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar$")
    num_samples: int = Field(ge=1)
    num_bytes: int = Field(ge=1)
    sha256: str


class Manifest(BaseModel):
    """What a folder of shards holds; equal data have equal manifests.

    features: what made them, where the shards hold an encoder's features in place of pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    num_samples: int
    num_images: int
    num_turns: int
    num_rejects: int
    features: FeatureRecord | None = None

    @property
    def sha256(self) -> str:
        """A fingerprint of the data, in hexadecimal: of every byte of the shards."""
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()

    @staticmethod
    def read(folder: Path | str, patience: Patience = PATIENT) -> "Manifest":
        """Read the manifest of a folder of shards, a path or a URL.

        Raises:
            MissingFile: there is none.
            UserError: it is not one.
            StorageError: the storage does not give it.
        """
        location = join(str(folder), MANIFEST_NAME)
        try:
            return Manifest.model_validate_json(read_file(location, patience))
        except MissingFile:
            found = sorted(Path(folder).glob(f"*/{MANIFEST_NAME}"))
            hint = (
                f"name one of {', '.join(str(path.parent) for path in found)}"
                if found
                else "give a folder that `vlm shards pack` wrote"
            )
            raise MissingFile(f"{folder} holds no {MANIFEST_NAME}: {hint}") from None
        except ValidationError as error:
            raise UserError(f"{location} is not a manifest: {first_fault(error)}") from None


@dataclass(frozen=True)
class PackSettings:
    """What decides how samples become shards, and how many processes do it.

    max_side_px: see `data.prepare.prepare_samples`.
    dedup: `sample` leaves out what shows and says the same, byte for byte, as a sample before it;
        `picture` also what shows a picture that came before under another name. None keeps all.
    num_workers: processes beside the one that writes; no byte depends on it.
    """

    samples_per_shard: int = 1000
    max_side_px: int | None = None
    dedup: Literal["sample", "picture"] | None = None
    num_workers: int = 0

    @property
    def plan(self) -> str:
        """What decides the bytes of the shards."""
        return f"{self.samples_per_shard} {self.max_side_px} {self.dedup}"


@dataclass(frozen=True)
class Part:
    """What goes into one folder of shards.

    items: samples, or entries whose pictures are in `pictures`, in the order they are written.
    total: how many items come, for a progress bar on stderr; None shows no bar.
    fingerprint: differs if the items do; needed to continue an unfinished pack.
    features: see `Manifest`; the items are `Prepared` then.
    """

    items: Iterable[Item]
    pictures: Pictures | None = None
    total: int | None = None
    fingerprint: str = ""
    features: FeatureRecord | None = None


@dataclass(frozen=True)
class ShardState:
    """What stood when a shard was full.

    num_read: items of the source, from its beginning on.
    rejects: key and reason of what was left out since the shard before.
    keys: of the shard's samples.
    seen: hashes that later samples may not repeat, and the name of what had them first.
    """

    entry: ShardEntry
    num_read: int
    num_images: int
    num_turns: int
    rejects: list[Reject]
    keys: list[str]
    seen: dict[str, str]


def pack(
    samples: Iterable[RawSample | Reject],
    out: Path,
    samples_per_shard: int = 1000,
    total: int | None = None,
) -> Manifest:
    """Write samples into shards, and what could not be used into `rejects.jsonl`.

    See `pack_parts`, which does the same with more settings.
    """
    settings = PackSettings(samples_per_shard)
    return pack_parts({"": Part(samples, total=total)}, out, settings)[out]


def pack_parts(
    parts: Mapping[str, Part], out: Path, settings: PackSettings, resume: bool = False
) -> dict[Path, Manifest]:
    """Write each part into the sub-folder of `out` that has its name; `""` is `out` itself.

    `out` appears all at once when everything is written. Pictures are decoded to see that they
    can be, and copied byte for byte unless they are to be shrunk; equal samples give equal shards,
    byte for byte.

    Args:
        resume: continue what a pack of equal parts and settings left unfinished.
    Returns:
        each folder and the manifest that was written there.
    Raises:
        UserError: `out` holds something already or cannot be written, no sample of a part could
            be used, or what lies there unfinished is another pack.
    """
    if settings.samples_per_shard < 1:
        raise UserError(f"samples_per_shard must be at least 1, not {settings.samples_per_shard}")
    named = [f"{name} {part.fingerprint}" for name, part in parts.items()]
    # What has no fingerprint cannot be continued, so nothing of it is kept.
    keep = all(part.fingerprint for part in parts.values())
    with staged(out, "\n".join([settings.plan, *named]), resume, keep) as folder:
        manifests = {}
        for name, part in parts.items():
            (folder / name).mkdir(exist_ok=True)
            manifests[out / name] = _PartWriter(folder / name, settings).write(part, out / name)
    return manifests


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _PartWriter:
    """Writes the shards of one folder, behind those that are whole already."""

    def __init__(self, folder: Path, settings: PackSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.states = _whole_shards(folder)
        self.num_read = self.states[-1].num_read if self.states else 0
        self.keys = {key for state in self.states for key in state.keys}
        self.seen = {h: name for state in self.states for h, name in state.seen.items()}
        self.new_seen: dict[str, str] = {}
        self.rejects: list[Reject] = []

    def write(self, part: Part, out: Path) -> Manifest:
        """Write what is missing, then rejects and manifest.

        Raises:
            UserError: there is no sample for it.
        """
        usable = self._usable(part, out)
        while first := next(usable, None):
            shard = itertools.chain([first], itertools.islice(usable, self._num_more))
            self._write_shard(shard)
        rejects = [reject for state in self.states for reject in state.rejects]
        rejects += self.rejects
        if not self.states:
            raise UserError(f"{out}: no sample could be used: {why_none(rejects)}")
        manifest = Manifest(
            shards=tuple(state.entry for state in self.states),
            num_samples=sum(state.entry.num_samples for state in self.states),
            num_images=sum(state.num_images for state in self.states),
            num_turns=sum(state.num_turns for state in self.states),
            num_rejects=len(rejects),
            features=part.features,
        )
        write_rejects(self.folder, rejects)
        text = manifest.model_dump_json(indent=1, exclude_none=True)
        (self.folder / MANIFEST_NAME).write_text(text + "\n", "utf-8")
        return manifest

    @property
    def _num_more(self) -> int:
        return self.settings.samples_per_shard - 1

    def _usable(self, part: Part, out: Path) -> Iterator[Prepared]:
        """Yield what can be written; append the rest to `rejects`."""
        rest = itertools.islice(part.items, self.num_read, None)
        settings = self.settings
        ready: Iterable[Prepared | Reject] = prepare_samples(
            rest, part.pictures, settings.max_side_px, settings.num_workers
        )
        if part.total is not None:
            ready = track(
                ready,
                f"packing {out.name}",
                part.total,
                completed=self.num_read,
                console=Console(stderr=True),
            )
        for item in ready:
            self.num_read += 1
            fault = item if isinstance(item, Reject) else self._repeated(item)
            if fault is not None:
                self.rejects.append(fault)
            else:
                assert isinstance(item, Prepared)
                self.keys.add(item.key)
                yield item

    def _repeated(self, item: Prepared) -> Reject | None:
        """Why a sample repeats another; if it does not, remember what it shows."""
        if item.key in self.keys:
            return Reject(item.key, "duplicate key: another sample before it has the same")
        if self.settings.dedup is None:
            return None
        marks = {item.content_hash: item.key}
        if item.content_hash in self.seen:
            first = self.seen[item.content_hash]
            return Reject(item.key, f"duplicate sample: shows and says the same as {first}")
        if self.settings.dedup == "picture":
            names = item.names or [item.key] * len(item.picture_hashes)
            for name, digest in zip(names, item.picture_hashes, strict=True):
                first = self.seen.get(digest, name)
                if first != name:
                    return Reject(item.key, f"duplicate picture: {name} has the bytes of {first}")
                marks[digest] = name
        self.seen |= marks
        self.new_seen |= marks
        return None

    def _write_shard(self, shard: Iterable[Prepared]) -> None:
        path = self.folder / f"shard-{len(self.states):06d}.tar"
        unfinished = path.with_name(f"{path.name}.part")
        keys, edges, num_images, num_turns = [], [0], 0, 0
        # Old GNU headers hold nothing of this machine or the time of writing.
        with tarfile.open(unfinished, "w", format=tarfile.GNU_FORMAT) as tar:
            for item in shard:
                _add(tar, f"{item.key}.json", item.text)
                for index, (content, extension) in enumerate(item.images):
                    _add(tar, f"{item.key}.{index}.{extension}", content)
                keys.append(item.key)
                edges.append(tar.offset)
                num_images += len(item.images)
                num_turns += item.num_turns
        unfinished.rename(path)
        entry = _entry(path, len(keys))
        places = ShardIndex(tuple(keys), tuple(edges[:-1]), tuple(edges[1:]))
        _write_whole(path.with_name(index_name(path.name)), places.to_json(entry.sha256))
        state = ShardState(
            entry=entry,
            num_read=self.num_read,
            num_images=num_images,
            num_turns=num_turns,
            rejects=self.rejects,
            keys=keys,
            seen=self.new_seen,
        )
        _write_state(path, state)
        self.states.append(state)
        self.rejects, self.new_seen = [], {}


def _whole_shards(folder: Path) -> list[ShardState]:
    """The states of the shards that need not be written again; all else is removed."""
    states: list[ShardState] = []
    kept: set[str] = set()
    for path in sorted(folder.glob(f"*.tar{STATE_SUFFIX}")):
        state = _read_state(path)
        if state is None or state.entry.name != f"shard-{len(states):06d}.tar":
            break
        shard = folder / state.entry.name
        if not shard.is_file() or file_sha256(shard) != state.entry.sha256:
            break
        if not (folder / index_name(shard.name)).is_file():
            break
        states.append(state)
        kept |= {path.name, shard.name, index_name(shard.name)}
    for path in folder.glob("shard-*"):
        if path.name not in kept:
            path.unlink()
    return states


def _read_state(path: Path) -> ShardState | None:
    try:
        fields = json.loads(path.read_text("ascii"))
        entry = ShardEntry.model_validate(fields.pop("entry"))
        rejects = [Reject(**reject) for reject in fields.pop("rejects")]
        return ShardState(entry=entry, rejects=rejects, **fields)
    except (ValueError, TypeError, KeyError):  # ValidationError is a ValueError
        return None


def _write_state(shard: Path, state: ShardState) -> None:
    rejects = [asdict(reject) for reject in state.rejects]
    fields = {**vars(state), "entry": state.entry.model_dump(), "rejects": rejects}
    # ASCII keeps half a surrogate pair, out of somebody's JSON, as the escape that it was.
    _write_whole(shard.with_name(f"{shard.name}{STATE_SUFFIX}"), json.dumps(fields))


def _write_whole(path: Path, content: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(content, "ascii")
    part.rename(path)


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
