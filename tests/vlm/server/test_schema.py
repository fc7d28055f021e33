"""The API's description: schemathesis finds no answer of 5xx behind it, and its examples work."""

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from vlm.server.schema import EXAMPLES

MAX_EXAMPLES = 40


@pytest.fixture(scope="module")
def schema(served: Any) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/ask"),
        ("POST", "/v1/caption"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
    ],
)
def test_no_request_gets_a_5xx(served: Any, schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]
    modes = [schemathesis.GenerationMode.POSITIVE]
    if method == "POST":  # the others have nothing that could be wrong
        modes.append(schemathesis.GenerationMode.NEGATIVE)
    statuses = set()

    for mode in modes:

        @hypothesis.settings(
            max_examples=MAX_EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            response = case.call()
            statuses.add(response.status_code)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert set(response.json()) == {"error"}, response.text

        check()
    assert statuses
    served.wait_until_free()


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "n", "stop", "seed", "stream", "temperature", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
@hypothesis.settings(max_examples=MAX_EXAMPLES, suppress_health_check=list(HealthCheck))
def test_json_of_any_form_gets_no_5xx(served: Any, body: dict[str, Any]) -> None:
    import json

    headers = {"content-type": "application/json"}
    content = json.dumps({"model": "tiny", **body})
    response = served.client.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code in (200, 400, 404), response.text


def test_the_examples_of_the_description_are_answered(served: Any) -> None:
    described = served.client.get("/openapi.json").json()["components"]["schemas"]["ChatRequest"]
    assert described["examples"] == EXAMPLES
    for example in EXAMPLES:
        body = {**example, "model": "tiny"}
        response = served.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text


def test_the_description_has_a_page(served: Any) -> None:
    assert "swagger" in served.client.get("/docs").text
