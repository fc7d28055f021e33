"""A content policy on a served model: refused, withheld, held back in streams, logged."""

import json
import logging
from pathlib import Path
from typing import Any

import openai
import pytest

# The stub says "Two red circles.\n\nA blue square, é."
NOTICE = "[withheld]"
PLUGIN = """
class Dark:
    def classify(self, content):
        if "crash" in content.text or "blue" in content.text:
            raise RuntimeError("crashed")
        return {"dark": float(any(max(p.getpixel((0, 0))) < 9 for p in content.pictures))}
"""


def policy(word: str, **settings: Any) -> dict[str, Any]:
    classifier = {"kind": "words", "settings": {"words": {"bad": [word]}}}
    return {"safety": {"classifiers": [classifier], "replacement": NOTICE, **settings}}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "dark_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    return "dark_plugin:Dark"


def client_of(served: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_a_conversation_that_is_flagged_is_a_bad_request(serve: Any, text_part: Any) -> None:
    served = serve(**policy("forbidden"))
    with client_of(served) as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [text_part("a FORBIDDEN thing")]},
            ],
        )
    assert refused.value.code == "content_policy" and "bad" in refused.value.message
    assert not served.engine.requests
    answer = served.client.post("/v1/ask", data={"question": "forbidden?"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "content_policy"
    assert served.ask("allowed").status_code == 200
    served.wait_until_free()


def test_a_picture_that_is_flagged_is_a_bad_request(
    serve: Any, plugin: str, image_part: Any, tmp_path: Path
) -> None:
    from vlm.safety.config import SafetyConfig

    safety = SafetyConfig.model_validate({"classifiers": [{"kind": plugin}], "output": None})
    served = serve(safety=safety)
    black = (
        "data:image/bmp;base64,Qk06AAAAAAAAADYAAAAoAAAAAQAAAAEAAAABABgAAAAAAAQAAAATCwAAEwsAAAAAAAAA"
        "AAAAAAAAAA=="
    )
    refused = served.ask(image_part(url=black))
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] == "content_policy"
    assert served.ask(image_part(1)).status_code == 200


@pytest.mark.parametrize("word", ["red", "blue"])
def test_an_answer_that_is_flagged_is_replaced_whole(serve: Any, word: str) -> None:
    served = serve(**policy(word))
    (choice,) = served.ask("What?", max_tokens=99, logprobs=True).json()["choices"]
    assert choice["message"]["content"] == NOTICE
    assert choice["finish_reason"] == "content_filter" and choice["logprobs"]["content"] == []
    short = served.client.post("/v1/ask", data={"question": "What?", "max_tokens": "99"}).json()
    assert (short["text"], short["finish_reason"]) == (NOTICE, "content_filter")
    served.wait_until_free()


def stream_of(served: Any, **settings: Any) -> tuple[list[str], list[str], str]:
    """Pieces of text, tokens of log probabilities, and how it ended."""
    pieces, tokens, reason = [], [], ""
    with client_of(served) as client:
        for chunk in client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "What?"}],
            stream=True,
            logprobs=True,
            **settings,
        ):
            for choice in chunk.choices:
                if choice.delta.content:
                    pieces.append(choice.delta.content)
                if choice.logprobs is not None and choice.logprobs.content:
                    tokens += [token.token for token in choice.logprobs.content]
                reason = choice.finish_reason or reason
    return pieces, tokens, reason


def test_a_stream_gives_whole_sentences_and_ends_before_the_flagged_one(serve: Any) -> None:
    served = serve(**policy("square"))
    pieces, tokens, reason = stream_of(served)
    assert (pieces, reason) == (["Two red circles.\n\n", NOTICE], "content_filter")
    assert "".join(tokens) in ("", "Two red circles.\n\n")
    pieces, tokens, reason = stream_of(serve(**policy("red")))
    assert (pieces, tokens, reason) == ([NOTICE], [], "content_filter")
    served.wait_until_free()


def test_a_stream_that_passes_says_all(serve: Any) -> None:
    pieces, tokens, reason = stream_of(serve(**policy("never")))
    assert "".join(pieces) == "Two red circles.\n\nA blue square, é."
    assert "".join(tokens).startswith("Two red circles.\n\nA blue") and reason == "stop"


def test_a_policy_may_only_log(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(**policy("red", input="log", output="log"))
    with caplog.at_level(logging.WARNING, "vlm.safety"):
        answer = served.ask("Is it red?", max_tokens=99).json()["choices"][0]
    assert answer["finish_reason"] == "stop" and answer["message"]["content"].startswith("Two red")
    facts = [record.__dict__["facts"] for record in caplog.records if hasattr(record, "facts")]
    assert [fact["side"] for fact in facts][:2] == ["input", "output"]
    assert all(fact["flagged"] == {"bad": 1.0} for fact in facts)


def test_a_classifier_that_fails_lets_nothing_pass(
    serve: Any, plugin: str, caplog: pytest.LogCaptureFixture
) -> None:
    from vlm.safety.config import SafetyConfig

    safety = SafetyConfig.model_validate({"classifiers": [{"kind": plugin}]})
    served = serve(safety=safety)
    with caplog.at_level(logging.ERROR):
        assert served.ask("crash").status_code == 500
        whole = served.ask("What?", max_tokens=99)
        assert whole.status_code == 500 and "blue" not in whole.text
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "What?"}],
            "stream": True,
        }
        streamed = served.client.post("/v1/chat/completions", json=body).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert "blue" not in streamed and "[DONE]" not in streamed
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    assert "crashed" not in streamed and "crashed" in caplog.text
    served.wait_until_free()
