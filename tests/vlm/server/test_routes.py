"""The short routes, what the server says of itself, and its log."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from vlm.server.facts import JsonLines


def test_a_question_about_uploads_is_answered(served: Any, encoded: Callable[..., bytes]) -> None:
    files = [("image", ("a.png", encoded(1))), ("image", ("b.jpg", encoded(2, "JPEG")))]
    data = {"question": "Which is larger?", "max_tokens": "3", "seed": "5", "temperature": "0.5"}
    answer = served.client.post("/v1/ask", data=data, files=files).json()
    assert answer["finish_reason"] == "length" and answer["model"] == "tiny" and answer["text"]
    assert answer["usage"]["completion_tokens"] == 3
    request = served.engine.requests[-1]
    assert len(request.prompt.images) == 2 and request.sampling.seed == 5


def test_a_question_needs_no_picture_and_a_caption_one(
    served: Any, encoded: Callable[..., bytes]
) -> None:
    assert served.client.post("/v1/ask", data={"question": "How many?"}).status_code == 200
    caption = served.client.post("/v1/caption", files={"image": encoded(1)})
    assert caption.json()["finish_reason"] == "stop"
    refused = served.client.post("/v1/caption")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "image"
    refused = served.client.post("/v1/ask", files={"image": encoded(1)})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "question"


def test_metrics_count_requests_tokens_and_images(serve: Any, image_part: Any) -> None:
    served = serve()
    served.ask(image_part(1), image_part(2))
    served.ask("How many?", n=0)
    text = served.client.get("/metrics").text
    assert 'vlm_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'vlm_requests_total{route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'vlm_tokens_total{kind="completion"} 4.0' in text
    assert "vlm_images_total 2.0" in text and "vlm_answers_open 0.0" in text
    assert "vlm_first_token_seconds_count 1.0" in text


def test_an_answer_carries_the_id_of_its_request(served: Any) -> None:
    given = served.client.get("/health", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    made = served.client.get("/health", headers={"x-request-id": "a b\x7f"})
    assert len(made.headers["x-request-id"]) == 32


def test_the_log_has_counts_and_no_contents(
    served: Any, image_part: Any, text_part: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vlm.server"):
        served.ask(image_part(3), text_part("A secret question"), user="somebody")
        served.client.get("/health?secret=1")
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    asked = next(line for line in lines if line.get("route") == "/v1/chat/completions")
    assert asked["status"] == 200 and asked["images"] == 1 and asked["completion_tokens"] == 4
    assert asked["id"] and asked["seconds"] > 0
    written = json.dumps(lines)
    assert "secret" not in written and "base64" not in written and "somebody" not in written


def test_unknown_paths_and_methods_are_refused_in_the_same_form(served: Any) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/ask", 405)):
        response = served.client.request(method, path)
        assert response.status_code == status and set(response.json()) == {"error"}
