"""JSON schemas as grammars of answers, over `llguidance`."""

import json
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlm.chat.tokenizer import Tokenizer
from vlm.engine.constraint import ConstraintError
from vlm.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

# Compiling costs time, and a schema may come from anybody.
MAX_SCHEMA_CHARS = 100_000
# Spaces as `json.dumps` writes them: where they are left open, a model may write nothing else for
# ever. Keywords that are not enforced are refused, also where a schema's own settings allow them.
FORM: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}


class JsonConstraint:
    """One answer that becomes JSON of a schema."""

    def __init__(self, matcher: "LLMatcher", num_ids: int) -> None:
        self._matcher, self._num_ids = matcher, num_ids

    def allowed(self) -> Tensor:
        """Return which tokens may come next, (ids,) bool; an end token where the JSON is whole.

        Raises:
            ConstraintError: the schema turned out to be too complex for the library.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ConstraintError(f"the JSON schema cannot be followed: {_reason(self._matcher)}")
        mask = np.unpackbits(bits, count=self._num_ids, bitorder="little")
        return torch.from_numpy(mask).bool()

    def advance(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self._matcher.consume_token(token)


class JsonGrammar:
    """A compiled JSON schema, for any number of answers."""

    def __init__(self, matcher: "LLMatcher", num_ids: int) -> None:
        self._matcher, self._num_ids = matcher, num_ids

    def start(self) -> JsonConstraint:
        """A constraint for an answer that begins."""
        return JsonConstraint(self._matcher.deep_copy(), self._num_ids)


class Grammars:
    """Compiles JSON schemas for a tokenizer; any thread may ask."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: LLTokenizer | None = None
        self._lock = Lock()

    def compile(self, schema: Mapping[str, Any]) -> JsonGrammar:
        """Return the grammar of a JSON schema; what it refers to elsewhere is not fetched.

        Answers have the spaces of `json.dumps`, and an object's keys in the schema's order.

        Raises:
            UserError: `llguidance` is not installed, or does not enforce all of this schema.
        """
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError as error:
            raise UserError(
                "answers by a JSON schema need llguidance: pip install 'vlm[schema]'"
            ) from error
        try:
            text = json.dumps(schema)
            if len(text) > MAX_SCHEMA_CHARS:
                raise UserError(
                    f"the JSON schema has {len(text)} characters, allowed: {MAX_SCHEMA_CHARS}"
                )
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=FORM)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the JSON schema cannot be read: {error}") from error
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._known(), grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some schemas fail no earlier
        if matcher.is_error():
            raise UserError(f"the JSON schema cannot be enforced: {_reason(matcher)}")
        return JsonGrammar(matcher, self._tokenizer.vocab_size)

    def _known(self) -> "LLTokenizer":
        """The vocabulary as the library reads it; of a large one this takes a second."""
        from llguidance import LLTokenizer

        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = LLTokenizer(
                    self._tokenizer.definition,
                    n_vocab=self._tokenizer.vocab_size,
                    eos_token=list(self._tokenizer.end_ids),
                )
            return self._vocabulary


def _reason(matcher: "LLMatcher") -> str:
    """What the library says, in one line."""
    return " ".join(matcher.get_error().split())[:200]
