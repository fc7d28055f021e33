"""What does not fit: two configurations, or the tensors needed and those that are there."""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_LISTED = 10

Shape = tuple[int, ...]


def differences(
    left: Mapping[str, Any], right: Mapping[str, Any], path: str = ""
) -> list[tuple[str, Any, Any]]:
    """Where two nested mappings differ: dotted path, value of the left, value of the right."""
    found: list[tuple[str, Any, Any]] = []
    for key in {**left, **right}:
        here = f"{path}.{key}".lstrip(".")
        one, other = left.get(key), right.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, here)
        elif one != other:
            found.append((here, one, other))
    return found


def mismatches(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """Say of each tensor that is missing, of another shape, or of no use, what is wrong."""
    problems = []
    for name, shape in expected.items():
        if name not in found:
            problems.append(f"{name} is missing (needed: {list(shape)})")
        elif found[name] != shape:
            problems.append(f"{name} is {list(found[name])}, needed: {list(shape)}")
    for name, shape in found.items():
        if name not in expected:
            problems.append(f"{name} has no place in the model (it is {list(shape)})")
    return problems


def listed(problems: Sequence[str]) -> str:
    """The first few problems in one line, and how many more there are."""
    line = "; ".join(problems[:MAX_LISTED])
    more = len(problems) - MAX_LISTED
    return line + (f" (and {more} more)" if more > 0 else "")
