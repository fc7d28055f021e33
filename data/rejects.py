"""What a pack left out: written beside the shards, with a reason each, and counted by kind."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.schema import Reject

REJECTS_NAME = "rejects.jsonl"


def write_rejects(folder: Path, rejects: Iterable[Reject]) -> None:
    """Write the list of a folder of shards, one line of JSON for each."""
    lines = [json.dumps({"key": r.key, "reason": r.reason}, ensure_ascii=False) for r in rejects]
    # Half a surrogate pair out of somebody's JSON goes back as the escape that it was.
    (folder / REJECTS_NAME).write_text(
        "".join(f"{line}\n" for line in lines), "utf-8", "backslashreplace"
    )


def read_rejects(folder: Path) -> list[Reject]:
    """The inputs that were left out when `folder` was packed."""
    lines = (folder / REJECTS_NAME).read_text("utf-8").splitlines()
    return [Reject(**json.loads(line)) for line in lines]


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


def why_none(rejects: Sequence[Reject]) -> str:
    """Why nothing could be packed, on one line: the most frequent kinds and the first reject."""
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
