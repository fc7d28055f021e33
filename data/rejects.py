"""What a pack left out: written beside the shards, with a reason each, and counted by kind."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from data.schema import Reject

REJECTS_NAME = "rejects.jsonl"


def write_rejects(folder: Path, rejects: Iterable[Reject]) -> None:
    """Write the list of a folder of shards, one line of JSON for each."""
    # Half a surrogate pair out of somebody's JSON goes back as the escape that it was.
    text = "".join(map(_line, rejects))
    (folder / REJECTS_NAME).write_text(text, "utf-8", "backslashreplace")


class RejectFile:
    """The list of what a run leaves out, which grows as it reads; each is listed once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / REJECTS_NAME
        # What a run that this one resumes has met, it may meet again.
        self._listed = set(read_rejects(folder)) if self._path.is_file() else set()

    def add(self, reject: Reject) -> None:
        """Append a reject, unless it is there; several processes may do so at the same time."""
        if reject not in self._listed:
            self._listed.add(reject)
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(_line(reject))


def read_rejects(folder: Path) -> list[Reject]:
    """The inputs that were left out when `folder` was packed, or in the run that it belongs to."""
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


def _line(reject: Reject) -> str:
    fields = {name: value for name, value in asdict(reject).items() if value is not None}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _printable(text: str, max_length: int = 200) -> str:
    # Names and texts of others may hold line breaks and commands to the terminal.
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= max_length else f"{clean[:max_length]}..."
