"""What harnesses ask for, in the words of our own API; needs neither harness."""

from typing import Any

import pytest
from PIL import Image

import vlm
from eval.harness.requests import answer_settings, as_batch_size, generate, show
from vlm.errors import UserError

PICTURE = Image.new("RGB", (4, 4))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_tokens": 256, "stop": ()}),
        ({"until": "\n", "max_gen_toks": 8}, {"max_tokens": 8, "stop": ("\n",)}),
        ({"until": ["a", ""], "max_new_tokens": 4}, {"max_tokens": 4, "stop": ("a",)}),
        (
            {"do_sample": False, "temperature": 0.7, "top_p": 0.5, "num_beams": 1},
            {"max_tokens": 256, "stop": ()},
        ),
        ({"temperature": 0, "top_p": None}, {"max_tokens": 256, "stop": ()}),
        (
            {"do_sample": True, "top_k": 0, "seed": 3},
            {"max_tokens": 256, "stop": (), "temperature": 1.0, "seed": 3},
        ),
        (
            {"temperature": 0.5, "top_k": 4},
            {"max_tokens": 256, "stop": (), "temperature": 0.5, "top_k": 4},
        ),
    ],
)
def test_generation_settings_are_told_in_our_words(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert answer_settings(given) == expected


def test_what_cannot_be_done_is_refused_and_what_means_nothing_is_told() -> None:
    with pytest.raises(UserError, match="num_beams is 4"):
        answer_settings({"num_beams": 4})
    with pytest.raises(UserError, match="until is"):
        answer_settings({"until": [1]})
    with pytest.warns(UserWarning, match="image_aspect_ratio"):
        answer_settings({"image_aspect_ratio": "pad"})
    with pytest.raises(UserError, match="batch_size is 'many'"):
        as_batch_size("many", None)
    assert as_batch_size("auto:4", None) > 1 and as_batch_size("3", None) == 3
    assert as_batch_size(8, 4) == 4 and as_batch_size(2, 4) == 2


def test_prompts_with_different_settings_keep_their_order(model: vlm.Model) -> None:
    chat = [{"role": "user", "content": "how many circles?"}]
    prompts = ["how many", chat, "circles are", "there"]
    lengths = [3, 5, 4, 3]
    texts = generate(model, prompts, [{"max_gen_toks": n} for n in lengths], batch_size=2)
    expected = [
        model.chat(prompt, max_tokens=n).text
        if isinstance(prompt, list)
        else model.complete_batch([prompt], max_tokens=n)[0].text
        for prompt, n in zip(prompts, lengths, strict=True)
    ]
    assert texts == expected and len(set(texts)) > 1


def test_pictures_stand_where_the_text_says_or_in_front() -> None:
    image = {"type": "image", "image": PICTURE}
    text = {"type": "text", "text": "what?"}
    (message,) = show([{"role": "user", "content": "what?"}], [PICTURE, PICTURE])
    assert message["content"] == [image, image, text]
    first, last = show(
        [{"role": "system", "content": "Look."}, {"role": "user", "content": "<image>what?"}],
        [PICTURE],
    )
    assert first["content"] == [{"type": "text", "text": "Look."}]
    assert last["content"] == [image, text]
    with pytest.raises(UserError, match="1 times <image> and 0 pictures"):
        show([{"role": "user", "content": "<image>"}], [])
