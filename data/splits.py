"""Dividing a source into parts that share no picture: the last pictures, or by their hash."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from data.documents import Entry
from data.pictures import Pictures
from data.sources import Source
from vlm.errors import UserError

_PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def read_split(options: Sequence[str]) -> tuple[str | None, dict[str, float]]:
    """What `--split` asks for: a split of the source, and shares to divide it by; or neither.

    Raises:
        UserError: one of the two is given twice, or the shares are not what `parse_shares` needs.
    """
    names = [option for option in options if "=" not in option]
    shares = [option for option in options if "=" in option]
    if len(names) > 1 or len(shares) > 1:
        raise UserError(
            f"--split is given as {', '.join(options)}: at most one NAME to choose and one list of "
            "shares such as train=0.9,validation=0.1"
        )
    return (names[0] if names else None), (parse_shares(shares[0]) if shares else {})


def choose_parts(
    source: Source, num_held_out: int | None, shares: dict[str, float]
) -> dict[str, Source]:
    """The parts of a source by the folder's name; `""` if it stays whole.

    Raises:
        UserError: both ways of dividing are asked for, or there are too few pictures.
    """
    if num_held_out is not None and shares:
        raise UserError("--hold-out-last and --split with shares both divide: give one of them")
    if num_held_out is not None:
        return hold_out_last(source, num_held_out)
    return divide(source, shares) if shares else {"": source}


def hold_out_last(source: Source, num_pictures: int) -> dict[str, Source]:
    """`train`, and as `validation` what the last `num_pictures` pictures show.

    The last by name, numbers in it by value. A sample of several pictures is held out if any
    of its pictures is, so no held-out picture is in the part that stays.

    Raises:
        UserError: there are not more pictures than that.
    """
    names = sorted({name for entry in source.entries for name in entry.pictures}, key=_natural)
    if not 0 < num_pictures < len(names):
        raise UserError(
            f"--hold-out-last must be from 1 to {len(names) - 1}, not {num_pictures}: the "
            f"source has {len(names)} pictures"
        )
    last = set(names[-num_pictures:])
    held = [not last.isdisjoint(entry.pictures) for entry in source.entries]
    stay = [entry for entry, is_held in zip(source.entries, held, strict=True) if not is_held]
    held_out = [entry for entry, is_held in zip(source.entries, held, strict=True) if is_held]
    return {
        "train": replace(source, entries=stay),
        "validation": replace(source, entries=held_out, rejects=[]),
    }


def parse_shares(text: str) -> dict[str, float]:
    """Read `train=0.9,validation=0.1`.

    Raises:
        UserError: not of this form, or the shares do not add up to 1.
    """
    shares: dict[str, float] = {}
    for piece in text.split(","):
        name, _, number = piece.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not _PART_NAME.fullmatch(name.strip()) or not 0 < share < 1 or name.strip() in shares:
            raise UserError(
                f"--split {text} has the part {piece!r}; needed: different names, each with a "
                "share between 0 and 1, as in train=0.9,validation=0.1"
            )
        shares[name.strip()] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"the shares of --split {text} add up to {sum(shares.values()):g}, not 1")
    return shares


def divide(source: Source, shares: dict[str, float]) -> dict[str, Source]:
    """Divide by the bytes of the pictures: whatever shows one picture is in one part.

    Samples that share pictures, under whatever name, form a group; the group's part is drawn from
    the hash of its smallest picture hash. So an unchanged picture stays in its part when others
    come or go, unless a sample begins to link it with others. A sample without a picture goes by
    its key. What cannot be used and shows no picture is listed with the first part.
    """
    groups = _picture_groups(source.entries, source.pictures)
    parts: dict[str, list[Entry]] = {name: [] for name in shares}
    for entry, group in zip(source.entries, groups, strict=True):
        parts[_part(group, shares)].append(entry)
    first = next(iter(shares))
    return {
        name: replace(source, entries=entries, rejects=source.rejects if name == first else [])
        for name, entries in parts.items()
    }


def _picture_groups(entries: Sequence[Entry], pictures: Pictures) -> list[str]:
    """For each entry the smallest hash of the pictures that it is linked with."""
    parents: dict[str, str] = {}

    def root(digest: str) -> str:
        while parents.setdefault(digest, digest) != digest:
            parents[digest] = digest = parents[parents[digest]]
        return digest

    known: dict[str, str] = {}
    members = []
    for entry in entries:
        for name in entry.pictures:
            if name not in known:
                known[name] = _digest(name, pictures)
        linked = {root(known[name]) for name in entry.pictures} or {root(_hash([entry.key]))}
        smallest = min(linked)  # so the root of a group is its smallest hash
        for digest in linked:
            parents[digest] = smallest
        members.append(smallest)
    return [root(digest) for digest in members]


def _digest(name: str, pictures: Pictures) -> str:
    try:
        return hashlib.sha256(pictures.read(name)).hexdigest()
    except UserError:  # it will be rejected, with this reason, in whichever part it is
        return _hash([name])


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _part(digest: str, shares: dict[str, float]) -> str:
    # Hashed again: the smallest of a group's hashes is not evenly spread.
    place = int(_hash([digest])[:13], 16) / 16**13
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return name


def _natural(name: str) -> list[str | int]:
    # Words and numbers alternate, so that a number is only ever compared with a number.
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", name))]
