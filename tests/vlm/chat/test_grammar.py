"""JSON schemas as grammars: what is written by them is JSON that they describe."""

import json
import random
import sys
from typing import Any

import jsonschema
import pytest

from vlm.chat.grammar import MAX_SCHEMA_CHARS, Grammars
from vlm.chat.processor import Processor
from vlm.chat.tokenizer import Tokenizer
from vlm.engine.constraint import ConstraintError
from vlm.errors import UserError

SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "bläu", 'a "quoted" one']},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "round": {"type": "boolean"},
        },
        "required": ["colour", "count"],
        "additionalProperties": False,
    },
    {
        "type": "array",
        "items": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 6}]},
        "maxItems": 4,
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/tree"}, "size": {"const": 1}},
                "required": ["size"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {"type": "string", "pattern": "^[a-f]{2,4}-\\d{1,3}$"},
]
LIMIT = 400


@pytest.fixture(scope="module")
def grammars(processor: Processor) -> Grammars:
    return Grammars(processor.tokenizer)


def write(grammars: Grammars, schema: dict[str, Any], tokenizer: Tokenizer, seed: int) -> list[int]:
    """Draw tokens evenly from those allowed until an end token or the limit."""
    draw = random.Random(seed)
    constraint = grammars.compile(schema).start()
    ids: list[int] = []
    while len(ids) < LIMIT:
        allowed = constraint.allowed()
        assert allowed.shape == (tokenizer.vocab_size,)
        ids.append(draw.choice(allowed.nonzero().flatten().tolist()))
        if ids[-1] in tokenizer.end_ids:
            break
        constraint.advance(ids[-1])
    return ids


@pytest.mark.parametrize("schema", SCHEMAS, ids=["object", "array", "recursive", "pattern"])
def test_whatever_is_drawn_is_json_of_the_schema(
    grammars: Grammars, processor: Processor, schema: dict[str, Any]
) -> None:
    texts = set()
    for seed in range(20):
        ids = write(grammars, schema, processor.tokenizer, seed)
        assert not set(ids[:-1]) & set(processor.tokenizer.special_ids)
        if len(ids) < LIMIT:
            texts.add(processor.tokenizer.decode(ids))
    for text in texts:
        value = json.loads(text)
        jsonschema.validate(value, schema)
        # Spaces are those of json.dumps, so that none can go on for ever.
        assert len(text.split()) <= len(json.dumps(value).split())
    assert len(texts) > 3


def test_an_end_token_is_allowed_where_the_json_is_whole_and_nowhere_else(
    grammars: Grammars, processor: Processor
) -> None:
    tokenizer = processor.tokenizer
    constraint = grammars.compile(SCHEMAS[0]).start()
    ends = list(tokenizer.end_ids)
    assert len(ends) == 2
    for token in tokenizer.encode('{"colour": "red", "count": 7}'):
        assert not constraint.allowed()[ends].any()
        constraint.advance(token)
    allowed = constraint.allowed()
    assert allowed[ends].all() and int(allowed.sum()) == 2


def test_answers_of_one_grammar_do_not_touch_each_other(
    grammars: Grammars, processor: Processor
) -> None:
    grammar = grammars.compile(SCHEMAS[0])
    first, second = grammar.start(), grammar.start()
    before = second.allowed()
    for token in processor.tokenizer.encode('{"colour": '):
        first.advance(token)
    assert second.allowed().equal(before) and grammar.start().allowed().equal(before)
    assert not first.allowed().equal(before)


def test_a_token_that_was_not_allowed_is_told(grammars: Grammars, processor: Processor) -> None:
    constraint = grammars.compile(SCHEMAS[0]).start()
    constraint.advance(processor.tokenizer.encode("x")[0])
    with pytest.raises(ConstraintError, match="cannot be followed"):
        constraint.allowed()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "objekt"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum .3. is greater"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "does not fetch"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "cannot be enforced"),
        (nested(200), "recursion"),
        (nested(3000), "cannot be read"),
        ({"enum": ["x" * MAX_SCHEMA_CHARS]}, "characters, allowed"),
        ({"enum": {1, 2}}, "cannot be read"),
    ],
    ids=[
        "type",
        "pattern",
        "range",
        "unknown keyword",
        "lenient",
        "remote",
        "endless",
        "deep",
        "deeper",
        "long",
        "no JSON",
    ],
)
def test_a_schema_that_is_not_enforced_is_refused(
    grammars: Grammars, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        grammars.compile(schema)


def test_without_the_library_the_extra_is_named(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"vlm\[schema\]"):
        Grammars(processor.tokenizer).compile({"type": "object"})
