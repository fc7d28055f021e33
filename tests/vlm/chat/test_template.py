"""Templates: what they write around words and images, in all their dialects, and in a cage."""

import json
from pathlib import Path

import pytest

from vlm.chat.template import LLAMA3_TEMPLATE, ChatTemplate, Slot, Structure, read_chat_format
from vlm.chat.tokenizer import Tokenizer
from vlm.errors import UserError

CHAT: Structure = (
    ("system", ("text",)),
    ("user", ("image", "text", "image")),
    ("assistant", ("text",)),
)
# For chats of text alone: adds to the content, hence fails on a list of parts.
TEXT_ONLY = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | trim }}"
    "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# For lists of parts alone: finds nothing in a string.
PARTS_ONLY = (
    "{% for m in messages %}{{ m['role'] }}:{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|image|>{% else %} {{ p['text'] }}{% endif %}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a"], 300)


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def test_llama3_form() -> None:
    template = ChatTemplate(LLAMA3_TEMPLATE, {"bos_token": "<|begin_of_text|>"})
    expected = (
        "<|begin_of_text|>" + header("system"),
        Slot(0, 0),
        "<|eot_id|>" + header("user") + "<|image|>",
        Slot(1, 1),
        "<|image|><|eot_id|>" + header("assistant"),
        Slot(2, 2),
        "<|eot_id|>",
    )
    assert template.skeleton(CHAT) == expected
    prompt = template.skeleton(CHAT, add_generation_prompt=True)
    assert prompt == (*expected[:-1], "<|eot_id|>" + header("assistant"))
    assert template.skeleton(CHAT[:2], add_generation_prompt=True) == expected[:-2]


def test_a_template_for_text_alone_shows_images_and_its_trimming_is_noticed() -> None:
    template = ChatTemplate(TEXT_ONLY, {"bos_token": "<s>"})
    assert template.skeleton(CHAT, add_generation_prompt=True) == (
        "<s><system>",
        Slot(0, 0, trims_left=True, trims_right=True),
        "</s><user><|image|>",
        Slot(1, 1),
        "<|image|></s><assistant>",
        Slot(2, 2, trims_left=True, trims_right=True),
        "</s><assistant>",
    )
    trimmed_on_the_right = template.skeleton((("user", ("image", "text")),))[1]
    assert trimmed_on_the_right == Slot(0, 0, trims_left=False, trims_right=True)


def test_a_template_for_parts_alone_gets_parts() -> None:
    pieces = ChatTemplate(PARTS_ONLY).skeleton((("user", ("text",)), ("user", ("text", "image"))))
    assert pieces == ("user: ", Slot(0, 0), "\nuser: ", Slot(1, 1), "<|image|>\n")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate"),
        ("Hello", r"the text of message 0 \(user\) 0 times"),
        ("{{ 2 * messages[0]['content'] }}", r"the text of message 0 \(user\) 2 times"),
        ("{{ messages[0]['content'] }}<|image|>", r"1 <\|image\|> for 0 images"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ missing.name }}", "UndefinedError"),
    ],
)
def test_a_template_that_does_not_show_the_chat_is_refused(source: str, complaint: str) -> None:
    with pytest.raises(
        UserError, match=rf"does not suit the messages user \(text\): .*{complaint}"
    ):
        ChatTemplate(source).skeleton((("user", ("text",)),))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ raise_exception.__globals__['re'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set n = namespace(__class__=1) %}{{ n }}",
        "{{ self._TemplateReference__context }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% import 'os' as os %}{{ os }}",
        "{% include '/etc/hostname' %}",
    ],
)
def test_a_hostile_template_reaches_nothing(attack: str) -> None:
    """The sandbox refuses, or gives nothing where something was asked for."""
    structure: Structure = (("user", ("text",)),)
    harmless = ChatTemplate(LLAMA3_TEMPLATE).skeleton(structure)
    try:
        reached = ChatTemplate(LLAMA3_TEMPLATE + attack).skeleton(structure)
    except UserError as error:
        assert any(word in str(error) for word in ("SecurityError", "Undefined", "no loader"))
    else:
        assert reached == harmless


def test_the_template_has_its_own_file_or_lies_in_the_config(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    assert read_chat_format(tmp_path)[1].source == LLAMA3_TEMPLATE
    config = tmp_path / "tokenizer_config.json"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    for content, expected in (("plain", "plain"), (several, "d"), (several[:1], LLAMA3_TEMPLATE)):
        config.write_text(json.dumps({"chat_template": content}))
        assert read_chat_format(tmp_path)[1].source == expected
    config.write_text(json.dumps({"chat_template": "from the config"}))
    old = tmp_path / "chat_template.json"
    old.write_text(json.dumps({"chat_template": "from the old file"}))
    assert read_chat_format(tmp_path)[1].source == "from the old file"
    ChatTemplate("from the file {{ 'é' }}\n").save(tmp_path)
    assert read_chat_format(tmp_path)[1].source == "from the file {{ 'é' }}\n"


def test_a_folder_without_template_gains_what_llama3s_form_needs(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("_header_id|>", "|>"), "utf-8")
    found, template = read_chat_format(tmp_path)
    assert template.source == LLAMA3_TEMPLATE
    assert found.added_ids == (tokenizer.vocab_size, tokenizer.vocab_size + 1)
    prompt = template.skeleton((("user", ("text",)),), add_generation_prompt=True)
    assert prompt[0] == "<|begin_of_text|>" + header("user")
    assert found.encode_markup(header("user"))[0] == found.added_ids[0]
    # With a template of its own, nothing is added.
    template.save(tmp_path)
    assert read_chat_format(tmp_path)[0].added_ids == ()


def test_llama3s_form_starts_with_the_vocabularys_own_first_token_or_none() -> None:
    for named, start in (({"bos_token": "<s>"}, "<s>"), ({}, "")):
        first, *_ = ChatTemplate(LLAMA3_TEMPLATE, named).skeleton((("user", ("text",)),))
        assert first == start + header("user")


def test_a_prompt_ends_as_training_shows_answers_where_templates_think() -> None:
    thinking = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}<think></think>"
        "{% endif %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
        "{% endif %}"
    )
    question = (("user", ("text",)),)
    template = ChatTemplate(thinking)
    answered = template.skeleton((*question, ("assistant", ("text",))))
    assert template.skeleton(question, add_generation_prompt=True) == answered[:-1]
