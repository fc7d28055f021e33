"""Reading samples out of shards by their position.

An index says which bytes of a shard are a sample's; neighbours are read together, and no sample
depends on what comes before it. A fault costs the samples that it touches and no other.
"""

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data.features import EXTENSION, FeatureRecord
from data.index import ShardIndex, index_name
from data.members import Member, TarFault, cut_short, read_members
from data.pack import Manifest
from data.scan import cached_index
from data.schema import RawSample, Reject, Sample
from data.storage import (
    PATIENT,
    ByteRange,
    MissingFile,
    Patience,
    join,
    list_files,
    read_ranges,
)
from vlm.errors import UserError
from vlm.images import EXTENSIONS

PICTURE_EXTENSIONS = frozenset(EXTENSIONS.values()) | {"jpeg", "tiff"}
INDEXES_KEPT = 64
MAX_GAP_BYTES = 1 << 16  # between two samples that are read together all the same
MAX_RUN_BYTES = 8 << 20  # that are read together, unless a sample alone is larger
SAMPLES_AT_ONCE = 64  # where all are read in order


@dataclass(frozen=True)
class ShardSet:
    """The shards of one source, read by position.

    It may be pickled, forked and shared by threads; each process reads its own indexes.

    location: a folder's path or URL.
    num_samples: of each shard, as the manifest says. Without a manifest, what the tar's headers
        show; a fault that ends a tar early then counts as one sample more, which is rejected.
    fingerprint: of the data: the manifest's, or else of the shards' names and indexes.
    names: of the shards, files at `location`.
    hashes: SHA-256 of each shard, as the manifest says; empty without one.
    features: what made the features that the shards hold in place of pictures; None if pictures.
    num_images: of all samples, as the manifest says; None without one.
    """

    location: str
    num_samples: tuple[int, ...]
    fingerprint: str
    names: tuple[str, ...]
    hashes: tuple[str, ...] = ()
    patience: Patience = PATIENT
    features: FeatureRecord | None = None
    num_images: int | None = None
    _indexes: dict[int, ShardIndex] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def open(
        location: str | Path, patience: Patience = PATIENT, features: bool = False
    ) -> "ShardSet":
        """Find the shards of a source; with a manifest nothing else is read.

        Args:
            features: take features in place of pictures as well.
        Raises:
            UserError: there is neither a manifest nor a tar, it is no manifest, or it says that
                the shards hold features.
            StorageError: the storage does not answer.
        """
        location = str(location)
        try:
            manifest = Manifest.read(location, patience)
        except MissingFile:
            found = _without_manifest(location, patience)
            if found is None:
                raise
            return found
        if manifest.features is not None and not features:
            raise UserError(
                f"{location} holds what an encoder made of pictures, not the pictures: only "
                "`vlm train align`, which leaves that encoder as it is, reads it; "
                "name the folder that `vlm shards features` read"
            )
        return ShardSet(
            location=location,
            num_samples=tuple(entry.num_samples for entry in manifest.shards),
            fingerprint=manifest.sha256,
            names=tuple(entry.name for entry in manifest.shards),
            hashes=tuple(entry.sha256 for entry in manifest.shards),
            patience=patience,
            features=manifest.features,
            num_images=manifest.num_images,
        )

    @property
    def places(self) -> Iterator[tuple[int, int]]:
        """Every (shard, place in the shard), in the order in which the samples were written."""
        return ((s, place) for s, number in enumerate(self.num_samples) for place in range(number))

    def path(self, shard: int) -> str:
        """The location of a shard."""
        return join(self.location, self.names[shard])

    def read(self, places: Sequence[tuple[int, int]]) -> list[RawSample | Reject]:
        """Read the samples at the given (shard, place in the shard).

        Only JSON and pictures are accepted, or JSON and features where the manifest says so; they
        stay as they are in the file, and nothing in a shard is executed or unpickled.

        Returns:
            in the order of `places` the samples; where one cannot be had, why: its key, or
            `SHARD#place` where that is not known, and a reason with the shard and the byte.
        Raises:
            StorageError: a storage does not give a file that may be there. Later it may.
        """
        results: dict[int, RawSample | Reject] = {}
        pieces: list[_Piece] = []
        indexes = self._load({shard for shard, _ in places})
        for number, (shard, place) in enumerate(places):
            index = indexes[shard]
            fault = self._fault(index, shard, place)
            if fault is None:
                start, end, key = index.starts[place], index.ends[place], index.keys[place]
                pieces.append(_Piece(shard, start, end, key, number))
            else:
                results[number] = fault
        runs = list(_runs(sorted(pieces)))
        ranges = [ByteRange(self.path(run[0].shard), run[0].start, run[-1].end) for run in runs]
        contents = read_ranges(ranges, self.patience)
        for run in reversed(runs):
            results.update(self._parse(run, contents.pop()))  # samples are copies: let each run go
        return [results[number] for number in range(len(places))]

    def read_each(self, places: Iterable[tuple[int, int]]) -> Iterator[RawSample | Reject]:
        """Yield what `read` gives, a few at a time, for many places in a row."""
        rest = iter(places)
        while some := list(islice(rest, SAMPLES_AT_ONCE)):
            yield from self.read(some)

    def read_all(self, places: Iterable[tuple[int, int]] | None = None) -> Iterator[RawSample]:
        """Yield the samples at `places`, or every sample.

        Raises:
            UserError: one of them cannot be had.
        """
        for found in self.read_each(self.places if places is None else places):
            if isinstance(found, Reject):
                raise UserError(f"{found.key}: {found.reason}")
            yield found

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_indexes": {}}

    def _load(self, shards: set[int]) -> dict[int, ShardIndex]:
        """The indexes of some shards; those that lie beside them are read together."""
        known = {shard: self._indexes.pop(shard, None) for shard in shards}
        found = {shard: index for shard, index in known.items() if index is not None}
        rest = sorted(shards - found.keys())
        beside: list[bytes | None] = [None] * len(rest)
        if self.hashes:
            names = [join(self.location, index_name(self.names[shard])) for shard in rest]
            beside = read_ranges([ByteRange(name) for name in names], self.patience)
        found |= {s: self._index(s, content) for s, content in zip(rest, beside, strict=True)}
        self._indexes.update(found)  # those used last come last
        for shard in list(self._indexes)[:-INDEXES_KEPT]:
            self._indexes.pop(shard, None)
        return found

    def _index(self, shard: int, beside: bytes | None) -> ShardIndex:
        """The index of a shard, out of the file beside it if there is one."""
        path, stated = self.path(shard), self.num_samples[shard]
        index = None
        if beside is not None:
            try:
                index = ShardIndex.parse(beside, self.hashes[shard])
            except UserError as error:
                warnings.warn(
                    f"{index_name(path)} {error}: the tar's headers are read instead", stacklevel=4
                )
        if index is None:
            try:
                index = cached_index(path, self.patience)
            except MissingFile:
                return ShardIndex((), (), (), "is missing")
        if not self.hashes or len(index.keys) == stated:
            return index
        fault = f"holds {len(index.keys)} samples; the manifest says {stated}"
        if len(index.keys) > stated:  # which of them are meant cannot be known
            return ShardIndex((), (), (), fault)
        return replace(index, fault=index.fault or fault)

    def _fault(self, index: ShardIndex, shard: int, place: int) -> Reject | None:
        """Why there is no sample to look for."""
        name, path = self.names[shard], self.path(shard)
        if not 0 <= place < self.num_samples[shard]:
            raise IndexError(f"{path} has {self.num_samples[shard]} samples: no place {place}")
        if place >= len(index.keys):
            return Reject(f"{name}#{place}", f"bad shard: {path} {index.fault}", name)
        if place in index.repeated:
            key, start = index.keys[place], index.starts[place]
            reason = f"duplicate key: {path}, byte {start}: a sample before it has the same"
            return Reject(key, reason, name)
        return None

    def _parse(
        self, run: list["_Piece"], content: bytes | None
    ) -> Iterator[tuple[int, RawSample | Reject]]:
        """Yield what each piece of a run is, by its number."""
        name, path, base = self.names[run[0].shard], self.path(run[0].shard), run[0].start
        file = io.BytesIO(content or b"")
        for piece in run:
            try:
                if content is None:
                    raise TarFault("is missing")
                if piece.end - base > len(content):
                    raise cut_short(base + len(content))
                members = list(read_members(file, piece.start - base, piece.end - base, base))
                has_features = self.features is not None
                yield piece.number, _raw_sample(piece.key, members, content, has_features)
            except TarFault as fault:
                yield piece.number, Reject(piece.key, f"bad shard: {path} {fault}", name)
            except UserError as error:
                reason = f"bad sample: {path}, byte {piece.start}: {error}"
                yield piece.number, Reject(piece.key, reason, name)


class _Piece(NamedTuple):
    """The bytes of one wanted sample. number: where it stands among those wanted."""

    shard: int
    start: int
    end: int
    key: str
    number: int


def read_folder(folder: str | Path) -> Iterator[RawSample]:
    """Yield every sample of a folder of shards, in the order in which they were written.

    Raises:
        UserError: no shards, or a sample that cannot be had.
    """
    yield from ShardSet.open(folder).read_all()


def _without_manifest(location: str, patience: Patience) -> ShardSet | None:
    """The tars of a folder that `pack` did not write; None where there are none."""
    try:
        names = list_files(location, ".tar", patience)
    except MissingFile:
        return None
    if not names:
        return None
    counts = []
    digest = sha256()
    for name in names:
        index = cached_index(join(location, name), patience)
        counts.append(len(index.keys) + (index.fault is not None))
        digest.update(f"{index.to_json(name)}{index.fault}".encode())
    return ShardSet(location, tuple(counts), digest.hexdigest(), tuple(names), patience=patience)


def _runs(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Put sorted pieces that are neighbours in their shard together."""
    run: list[_Piece] = []
    for piece in pieces:
        if run and (
            piece.shard != run[0].shard
            or piece.start - run[-1].end > MAX_GAP_BYTES
            or piece.end - run[0].start > MAX_RUN_BYTES
        ):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _raw_sample(
    key: str, members: Sequence[Member], content: bytes, has_features: bool
) -> RawSample:
    """Put a sample together.

    Raises:
        UserError: its members are not a chat and the pictures that it shows, or their features.
    """
    extensions = frozenset({EXTENSION}) if has_features else PICTURE_EXTENSIONS
    expected = f"KEY.0.{EXTENSION}, ..." if has_features else "KEY.0.jpg, KEY.1.png, ..."
    files: dict[str, bytes] = {}
    for member in members:
        if member.key != key:
            raise UserError(f"holds {member.name!r}: the index names another sample")
        if member.suffix != "json" and not _is_numbered(member.suffix, extensions):
            raise UserError(f"holds {member.name!r}: only KEY.json and {expected}")
        if member.suffix in files:
            raise UserError(f"holds {member.name!r} twice")
        files[member.suffix] = content[member.content : member.content + member.num_bytes]
    if "json" not in files:
        raise UserError(f"pictures of {key!r} without {key}.json beside them")
    try:
        sample = Sample.parse(files.pop("json"))
    except UserError as error:
        raise UserError(f"{key}.json: {error}") from None
    numbered = {int(suffix.partition(".")[0]): suffix for suffix in files}
    if len(numbered) != len(files) or sorted(numbered) != list(range(sample.num_images)):
        raise UserError(
            f"{key} has pictures {sorted(files)} for {sample.num_images} places in its chat"
        )
    images = [files[numbered[place]] for place in range(sample.num_images)]
    return RawSample(key, sample, images, has_features)


def _is_numbered(suffix: str, extensions: frozenset[str]) -> bool:
    index, _, extension = suffix.partition(".")
    return index.isdecimal() and extension in extensions
