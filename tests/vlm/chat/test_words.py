"""The words of an answer and their tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.chat.processor import Processor
from vlm.chat.words import answer_words


@pytest.mark.parametrize("text", ["A small yellow circle.", "  two\n red  ", "naïve 日本 é"])
def test_words_are_those_of_the_text(processor: Processor, text: str) -> None:
    words = answer_words(processor.tokenizer, processor.tokenizer.encode(text))
    assert [word.text for word in words] == text.split()


def test_a_words_tokens_write_it(processor: Processor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer.encode("A small yellow circle, naïve 日本.")
    for word in answer_words(tokenizer, ids):
        assert tokenizer.decode([ids[place] for place in word.places]).strip() == word.text


def test_nothing_has_no_words(processor: Processor) -> None:
    assert answer_words(processor.tokenizer, []) == []


@given(ids=st.lists(st.integers(0, 255), max_size=12))
def test_any_bytes_have_words_and_every_word_has_tokens(
    processor: Processor, ids: list[int]
) -> None:
    words = answer_words(processor.tokenizer, ids)
    assert [word.text for word in words] == processor.tokenizer.decode(ids).split()
    assert all(word.places for word in words)
