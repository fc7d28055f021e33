"""The text of an answer as its tokens come."""

from collections.abc import Iterator, Sequence

from vlm.chat.tokenizer import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


class AnswerText:
    """Text that grows by tokens and is cut at the first stop string.

    Each token is decoded together with the piece before it only, so that a long answer costs no
    more per token than a short one.

    token_ids: all tokens added.
    text: what they say, up to the first stop string.
    stopped: whether the answer has ended by itself: at an end token or a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        self._given = 0
        # The text before `_open` is final. `_context` wrote its end: decoders treat the first token
        # of a text in their own way.
        self._final = ""
        self._context: list[int] = []
        self._open: list[int] = []

    def add(self, token: int) -> bool:
        """Add a token; return whether the answer has ended."""
        self.token_ids.append(token)
        if token in self._tokenizer.end_ids:
            self.stopped = True
            return True
        searched = max(0, len(self._final) - self._longest_stop)
        self._open.append(token)
        known = len(self._tokenizer.decode(self._context))
        piece = self._tokenizer.decode([*self._context, *self._open])[known:]
        self.text = self._final + piece
        if piece and not piece.endswith(UNFINISHED):
            self._final, self._context, self._open = self.text, self._open, []
        found = [place for s in self._stop if (place := self.text.find(s, searched)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True
        return self.stopped

    def new_pieces(self, final: bool = False) -> Iterator[str]:
        """Text that is certain by now and was not given before, without outer whitespace.

        Held back: an unfinished character, what may grow into a stop string, and whitespace that
        may turn out to be the last.
        """
        certain = self.text
        if not (self.stopped or final):
            certain = certain.rstrip(UNFINISHED)
            held = [
                size
                for stop in self._stop
                for size in range(1, len(stop))
                if certain.endswith(stop[:size])
            ]
            certain = certain[: len(certain) - max(held, default=0)]
        start = max(self._given, len(self.text) - len(self.text.lstrip()))
        end = len(certain.rstrip())
        if end > start:
            yield self.text[start:end]
            self._given = end
