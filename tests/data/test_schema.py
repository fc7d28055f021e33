import json

import pytest

from data.schema import ImagePart, Message, Reject, Sample, TextPart, Turn, sample_key
from vlm.errors import UserError


def said(role: str, *texts: str, image: bool = False) -> dict[str, object]:
    content: list[dict[str, str]] = [{"type": "image"}] if image else []
    return {"role": role, "content": content + [{"type": "text", "text": t} for t in texts]}


def test_a_sample_survives_json() -> None:
    sample = Sample(
        messages=(
            Message(role="system", content=(TextPart(text="Be brief."),)),
            Message(role="user", content=(ImagePart(), TextPart(text="Wie heißt <|image|>?"))),
            Message(role="assistant", content=(TextPart(text="Ada\n"),)),
        ),
        turns=(Turn(type="name", answers=("Ada", "ada")),),
        source="album",
    )
    assert Sample.parse(sample.to_json()) == sample
    assert Sample.parse(sample.to_json().encode()) == sample
    assert sample.num_images == 1 and sample.num_turns == 1


def test_json_holds_no_empty_fields() -> None:
    plain = Sample.parse({"messages": [said("user", "a"), said("assistant", "b")]})
    assert set(json.loads(plain.to_json())) == {"messages"}
    typed = Sample.parse({**json.loads(plain.to_json()), "turns": [{"type": "t"}]})
    assert json.loads(typed.to_json())["turns"] == [{"type": "t"}]


def test_accepted_answers_default_to_what_the_assistant_says() -> None:
    talk = [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")]
    assert Sample.parse({"messages": talk}).accepted_answers == (("b",), ("d",))
    turns = [{"answers": ["x", "y"]}, {"type": "t"}]
    assert Sample.parse({"messages": talk, "turns": turns}).accepted_answers == (("x", "y"), ("d",))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "roles must be user and assistant by turns.*they are none"),
        ([said("user", "a")], "the assistant last.*they are user"),
        ([said("assistant", "a")], "they are assistant"),
        ([said("user", "a"), said("user", "b"), said("assistant", "c")], "by turns"),
        ([said("user", "a"), said("system", "b"), said("assistant", "c")], "by turns"),
        ([said("system", "a")], "they are system"),
        ([said("user", " \n"), said("assistant", "b")], "messages.0.*the text is empty"),
        ([said("user", "a"), said("assistant")], "messages.1.content"),
        ([said("user", "a"), said("assistant", "b", image=True)], "only the user shows"),
        ([said("tool", "a"), said("assistant", "b")], "messages.0.role"),
    ],
)
def test_a_chat_out_of_order_is_refused(messages: list[object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        Sample.parse({"messages": messages})
    assert "\n" not in str(caught.value)


def test_unknown_fields_and_parts_are_refused() -> None:
    talk = [said("user", "a"), said("assistant", "b")]
    with pytest.raises(UserError, match="turn: "):
        Sample.parse({"messages": talk, "turn": []})
    video = {"role": "user", "content": [{"type": "video"}]}
    with pytest.raises(UserError, match=r"messages\.0\.content\.0"):
        Sample.parse({"messages": [video, talk[1]]})


def test_turns_must_be_as_many_as_answers() -> None:
    talk = [said("user", "a"), said("assistant", "b")]
    with pytest.raises(UserError, match="2 entries in turns for 1 assistant messages"):
        Sample.parse({"messages": talk, "turns": [{}, {}]})


def test_keys_keep_different_texts_apart() -> None:
    texts = [
        "a.b",
        "a b",
        "a/b",
        "a%b",
        "a%2Eb",
        "a_b",
        "__a",
        "_a",
        "/a",
        "..",
        "é",
        "\ud800",
        "a",
    ]
    keys = [sample_key(text) for text in texts]
    assert len(set(keys)) == len(texts)
    assert not any("." in key or key.startswith(("/", "__")) for key in keys)
    assert sample_key("photos/17-a_b~c") == "photos/17-a_b~c"


def test_kind_of_a_reject_is_its_reason_without_details() -> None:
    assert Reject("k", "bad picture: number 0: cut: short").kind == "bad picture"
    assert Reject("k", "no caption").kind == "no caption"
