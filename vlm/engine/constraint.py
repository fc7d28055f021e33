"""What an answer may say next, where something beside the network decides that.

Axes: `B` rows of a pass, `V` vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class ConstraintError(Exception):
    """A constraint cannot say what may come next."""


class Constraint(Protocol):
    """Limits one answer, whose tokens it follows."""

    def allowed(self) -> Tensor:
        """Return which tokens may come next, end tokens among them: (ids,) bool, on the CPU.

        Ids that it does not reach are not allowed.

        Raises:
            ConstraintError: it cannot tell, or a token before was not allowed.
        """
        ...

    def advance(self, token: int) -> None:
        """Take note of the token that was chosen."""
        ...


class Grammar(Protocol):
    """What answers must look like."""

    def start(self) -> Constraint:
        """A constraint for an answer that begins."""
        ...


def constrain(
    logits: Tensor, constraints: Sequence[Constraint | None]
) -> tuple[Tensor, dict[int, str]]:
    """Forbid what rows' constraints do not allow.

    Args:
        logits: (B, V), not changed.
    Returns:
        The logits with -inf for what is forbidden, and what was wrong with rows, by their number.
    """
    errors: dict[int, str] = {}
    bound = {row: found for row, found in enumerate(constraints) if found is not None}
    if bound:
        logits = logits.clone()
    for row, constraint in bound.items():
        try:
            allowed = constraint.allowed()[: logits.shape[1]]
        except ConstraintError as error:
            errors[row] = str(error)
            continue
        logits[row, : len(allowed)].masked_fill_(~allowed.to(logits.device), -torch.inf)
        logits[row, len(allowed) :] = -torch.inf
        if bool(logits[row].isneginf().all()):
            errors[row] = "no token that the network can write is allowed"
    return logits, errors
