"""The official OpenAI client, unmodified, against a served model."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from eval.speed.stub_engine import LOGPROB, StubEngine
from vlm.chat.processor import Processor

ANSWER = "Two red circles.\n\nA blue square, é."


@pytest.fixture
def client(served: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def question(text: str = "How many?") -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_chat_is_answered(client: openai.OpenAI, processor: Processor) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many red circles are there?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    reply = client.chat.completions.create(model="tiny", messages=messages)
    (choice,) = reply.choices
    assert choice.message.role == "assistant" and choice.message.content == ANSWER
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert reply.object == "chat.completion" and reply.model == "tiny"
    example = processor.encode(messages, add_generation_prompt=True)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(example.input_ids)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.id.startswith("chatcmpl-") and reply._request_id


def test_a_reply_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=question())
    again: list[Any] = [*question(), reply.choices[0].message, *question("And now?")]
    assert client.chat.completions.create(model="tiny", messages=again).choices


def test_several_images_reach_the_engine_in_their_order(
    client: openai.OpenAI, served: Any, image_part: Any, text_part: Any
) -> None:
    content = [
        image_part(1),
        text_part("and"),
        image_part(2, width_px=32),
        image_part(1),
        text_part("Which is larger?"),
    ]
    messages: Any = [{"role": "user", "content": content}]
    client.chat.completions.create(model="tiny", messages=messages)
    request = served.engine.requests[-1]
    assert [len(image.tiles) for image in request.prompt.images] == [1, 2, 1]
    first, second, third = request.image_keys
    assert first == third != second


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=question(),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == ANSWER
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 8
    assert len(chunks) > 8 and len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_without_usage_ends_with_its_reason(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=question(), stream=True, max_tokens=3
    )
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("circles", "Two red"),
        (["square", "circles."], "Two red"),
        ([".\n\nA blue"], "Two red circles"),
        (["nowhere"], ANSWER),
    ],
)
def test_an_answer_ends_before_a_stop_string(
    client: openai.OpenAI, served: Any, stream: bool, stop: Any, expected: str
) -> None:
    reply: Any = client.chat.completions.create(
        model="tiny", messages=question(), stop=stop, stream=stream
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
    else:
        text = reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"
    assert text == expected
    served.wait_until_free()


def test_the_settings_reach_the_engine(client: openai.OpenAI, served: Any) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=question(),
        temperature=0.7,
        top_p=0.9,
        seed=-1,
        n=3,
        max_completion_tokens=5,
        extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2},
    )
    requests = list(served.engine.requests)[-3:]
    assert [request.sampling.seed for request in requests] == [2**64 - 1, 0, 1]
    assert {r.sampling.temperature for r in requests} == {0.7}
    assert {r.sampling.top_p for r in requests} == {0.9}
    assert {r.sampling.top_k for r in requests} == {3}
    assert {r.sampling.min_p for r in requests} == {0.1}
    assert {r.sampling.repetition_penalty for r in requests} == {1.2}
    assert {r.max_new_tokens for r in requests} == {5}


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_come_with_their_indices(client: openai.OpenAI, stream: bool) -> None:
    reply: Any = client.chat.completions.create(
        model="tiny", messages=question(), n=3, stream=stream
    )
    if stream:
        texts = ["", "", ""]
        for chunk in reply:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in reply.choices]
    assert texts == [ANSWER] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_name_every_token(client: openai.OpenAI, stream: bool) -> None:
    reply: Any = client.chat.completions.create(
        model="tiny", messages=question(), logprobs=True, top_logprobs=2, stream=stream
    )
    if stream:
        found = [c.choices[0].logprobs.content for c in reply if c.choices[0].logprobs]
        tokens = [token for content in found for token in content]
    else:
        tokens = reply.choices[0].logprobs.content
    whole = [token for token in tokens if token.bytes is not None]
    assert bytes(byte for token in whole for byte in token.bytes).decode() in ANSWER.replace(
        "é", ""
    )
    assert len(tokens) - len(whole) in (0, 2)  # é is one token or two halves
    assert {token.logprob for token in tokens} == {LOGPROB}
    assert [len(token.top_logprobs) for token in tokens] == [2] * len(tokens)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "vlm"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


@pytest.mark.parametrize(
    ("error", "settings", "param"),
    [
        (openai.BadRequestError, {"temperature": 3}, "temperature"),
        (openai.BadRequestError, {"messages": []}, "messages"),
        (openai.BadRequestError, {"max_tokens": 300}, "max_tokens"),
        (openai.BadRequestError, {"frequency_penalty": 1}, "frequency_penalty"),
        (openai.BadRequestError, {"extra_body": {"tool_choice": "auto"}}, "tool_choice"),
        (openai.BadRequestError, {"top_logprobs": 2}, "top_logprobs"),
        (openai.NotFoundError, {"model": "gpt"}, "model"),
    ],
)
def test_a_refusal_is_a_typed_exception(
    client: openai.OpenAI, error: type[openai.APIStatusError], settings: Any, param: str
) -> None:
    arguments: Any = {"model": "tiny", "messages": question(), **settings}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**arguments)
    body: Any = caught.value.body
    assert body["param"] == param and body["type"] and body["message"]


def test_a_key_is_asked_for(serve: Any) -> None:
    served = serve(api_keys=["one", "two"])
    url = f"{served.url}/v1"
    with openai.OpenAI(base_url=url, api_key="two", max_retries=0) as client:
        assert client.chat.completions.create(model="tiny", messages=question()).choices
    with openai.OpenAI(base_url=url, api_key="three", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="tiny", messages=question())


def test_the_client_comes_again_after_429(serve: Any, make_stub: Callable[..., StubEngine]) -> None:
    served = serve(make_stub(slots=1, step_s=0.05), slots=1, queue=0, max_choices=1)
    url = f"{served.url}/v1"

    def occupy() -> None:
        served.ask("How many?", max_tokens=10)

    thread = threading.Thread(target=occupy)
    thread.start()
    while not served.service.worker.num_open:
        time.sleep(0.005)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=question())
    assert int(caught.value.response.headers["retry-after"]) >= 1
    with openai.OpenAI(base_url=url, api_key="none", max_retries=3) as client:
        assert client.chat.completions.create(model="tiny", messages=question()).choices
    thread.join()


def test_a_client_that_gives_up_frees_its_place(
    serve: Any, make_stub: Callable[..., StubEngine]
) -> None:
    served = serve(make_stub(step_s=0.02, answer=[40]))
    with openai.OpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=0.3
    ) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="tiny", messages=question(), max_tokens=200)
        stream = client.chat.completions.create(
            model="tiny", messages=question(), max_tokens=200, stream=True
        )
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        stream.close()
    served.wait_until_free()
    # A place is free at once; the thread of the engine hears of it before its next step.
    last = time.monotonic() + 10
    while len(served.engine.cancelled) < 2 and time.monotonic() < last:
        time.sleep(0.01)
    assert len(served.engine.cancelled) == 2


def test_a_failure_in_a_stream_is_an_exception(
    serve: Any, make_stub: Callable[..., StubEngine]
) -> None:
    served = serve(make_stub(fails=lambda request: True))
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=question())
        with pytest.raises(openai.APIError, match="failed to answer"):
            list(client.chat.completions.create(model="tiny", messages=question(), stream=True))
