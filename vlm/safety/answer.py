"""An answer's text, held back until it has been checked."""

import re
from dataclasses import dataclass

from vlm.safety.policy import Safety

# Where a sentence or a line ends; what follows shows that it has.
SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]+[\"')\]]*\s|\n")
# Text without an end is checked in pieces of at most so many characters. Each is checked together
# with as many of those before it, so that what stands across two pieces is seen whole.
MAX_HELD_CHARS = 400


@dataclass(frozen=True)
class Release:
    """What may be shown.

    text: what has passed; or, if the answer is blocked, what stands in place of all that was held.
    """

    text: str
    blocked: bool = False


class HeldAnswer:
    """Text that is given piece by piece and comes out sentence by sentence.

    After a release that is blocked the answer has ended, and nothing more may be added.
    """

    def __init__(self, safety: Safety) -> None:
        self._safety = safety
        self._passed = ""  # the end of what has been released
        self._held = ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not self._held

    def add(self, text: str, final: bool = False) -> Release:
        """Add a piece; return what has passed with it, often nothing.

        Args:
            final: whether the answer ends with it, so that nothing need be held back.
        Raises:
            ClassifierError: a classifier failed; nothing of what is held may be shown.
        """
        self._held += text
        released = ""
        while piece := self._next_piece(final):
            checked = self._passed + piece
            if self._safety.check_output(checked).blocked:
                self._held = ""
                return Release(self._safety.config.replacement, blocked=True)
            released += piece
            self._held = self._held[len(piece) :]
            self._passed = checked
            if len(checked) > MAX_HELD_CHARS:  # from a word's beginning on, where there is one
                end = checked[-MAX_HELD_CHARS:]
                self._passed = end[end.find(" ") + 1 :]
        return Release(released)

    def _next_piece(self, final: bool) -> str:
        """Whole sentences, or words that are too many to wait for their end."""
        piece = self._held[:MAX_HELD_CHARS]
        ends = [match.end() for match in SENTENCE_END.finditer(piece)]
        if ends:
            return piece[: ends[-1]]
        if len(self._held) > MAX_HELD_CHARS:
            return piece[: piece.rfind(" ") + 1 or MAX_HELD_CHARS]
        return piece if final else ""
