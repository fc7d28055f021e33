"""Answers by a JSON schema from a served model, through OpenAI's client and in Python."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

import vlm
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.server.config import ServerConfig
from vlm.server.load import service_of

QUESTION: list[Any] = [{"role": "user", "content": "How many red circles are there?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "shapes": {"type": "array", "items": {"enum": ["circle", "square"]}, "maxItems": 3},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["colour", "shapes", "count"],
    "additionalProperties": False,
}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 100}


class Scene(pydantic.BaseModel):
    """What OpenAI's client makes a schema of."""

    model_config = pydantic.ConfigDict(extra="forbid")

    colour: Literal["red", "blue"]
    count: Literal[1, 2, 3]


def schema_format(schema: Any = SCHEMA, **more: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "scene", "schema": schema, **more}}


@pytest.fixture
def model(open_model: VisionLanguageModel, processor: Processor, tmp_path: Path) -> vlm.Model:
    return vlm.Model(open_model, processor, tmp_path / "tiny")


@pytest.fixture
def client(serve: Any, model: vlm.Model) -> Iterator[openai.OpenAI]:
    served = serve(service=service_of(model, ServerConfig(slots=4, queue=32)))
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_constrained_and_free_answers_are_written_side_by_side(
    client: openai.OpenAI, model: vlm.Model
) -> None:
    expected = model.chat(QUESTION, max_tokens=20).text
    free: list[str | None] = []
    bound: list[Any] = []

    def ask(seed: int) -> None:
        create = client.chat.completions.create
        if seed % 2:
            reply = create(model="tiny", messages=QUESTION, max_tokens=20)
            free.append(reply.choices[0].message.content)
        else:
            form = schema_format(strict=True)
            bound.append(
                create(
                    model="tiny",
                    messages=QUESTION,
                    seed=seed,
                    n=2,
                    response_format=form,
                    **SAMPLED,
                )
            )

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert free == [expected] * 6
    choices = [choice for reply in bound for choice in reply.choices]
    assert len(choices) == 12 and {choice.finish_reason for choice in choices} == {"stop"}
    for choice in choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    assert len({choice.message.content for choice in choices}) > 3


def test_the_client_parses_answers_into_its_own_classes(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="tiny", messages=QUESTION, response_format=Scene, max_tokens=60
    )
    assert isinstance(reply.choices[0].message.parsed, Scene)


def test_a_stream_is_json_too(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        stream=True,
        seed=1,
        response_format=schema_format(),
        **SAMPLED,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    jsonschema.validate(json.loads("".join(pieces)), SCHEMA)
    assert len([piece for piece in pieces if piece]) > 5


def test_tokens_that_run_out_end_an_answer_as_usual(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=5, response_format=schema_format()
    )
    assert reply.choices[0].finish_reason == "length"
    assert str(reply.choices[0].message.content).startswith("{")


def test_json_object_is_any_object(client: openai.OpenAI) -> None:
    for seed in range(3):
        (choice,) = client.chat.completions.create(
            model="tiny",
            messages=QUESTION,
            seed=seed,
            response_format={"type": "json_object"},
            **SAMPLED,
        ).choices
        assert str(choice.message.content).startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(str(choice.message.content)), dict)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (schema_format({"type": "array", "uniqueItems": True}), "response_format"),
        (schema_format({"$ref": "file:///etc/passwd"}), "response_format"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "text", "json_schema": {"name": "x", "schema": {}}}, "response_format"),
        (
            schema_format(name="two words"),
            "response_format.json_schema.name",
        ),
        ({"type": "xml"}, "response_format.type"),
    ],
)
def test_a_format_that_cannot_be_kept_is_a_bad_request(
    client: openai.OpenAI, form: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=QUESTION, response_format=form)
    assert refused.value.param == param


def test_without_the_library_a_client_is_told_of_the_extra(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError, match=r"vlm\[schema\]") as refused:
        client.chat.completions.create(
            model="tiny", messages=QUESTION, response_format=schema_format()
        )
    assert refused.value.param == "response_format"
    text = client.chat.completions.create(
        model="tiny", messages=QUESTION, response_format={"type": "text"}, max_tokens=4
    )
    assert text.choices


def test_python_takes_a_schema_as_a_setting(model: vlm.Model) -> None:
    replies = model.choices(QUESTION, 4, json_schema=SCHEMA, seed=3, **SAMPLED)
    for reply in replies:
        assert reply.finish_reason == "stop"
        jsonschema.validate(json.loads(reply.text), SCHEMA)
    text = "".join(model.stream(QUESTION, json_schema=SCHEMA, max_tokens=100))
    jsonschema.validate(json.loads(text), SCHEMA)
    assert model.chat(QUESTION, max_tokens=20) == model.chat(QUESTION, max_tokens=20)
    with pytest.raises(UserError, match="objekt"):
        model.chat(QUESTION, json_schema={"type": "objekt"})
