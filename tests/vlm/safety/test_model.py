"""A policy on a loaded model: in Python, and through the commands' --safety."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlm
from vlm import cli
from vlm.captioning import caption_files
from vlm.chat.processor import Processor
from vlm.model import VisionLanguageModel
from vlm.safety.config import SafetyConfig
from vlm.safety.policy import ContentPolicyError, Safety
from vlm.weights.folder import COMPONENTS, FORMAT, FolderConfig, save_folder

NOTICE = "[withheld]"
QUESTION: list[Any] = [{"role": "user", "content": "How many red circles are there?"}]
SHORT: dict[str, Any] = {"max_tokens": 24}


def policy(**patterns: str) -> SafetyConfig:
    listed = {category: [pattern] for category, pattern in patterns.items()}
    return SafetyConfig.model_validate(
        {
            "classifiers": [{"kind": "words", "settings": {"patterns": listed}}],
            "replacement": NOTICE,
        }
    )


@pytest.fixture
def model_with(
    open_model: VisionLanguageModel, processor: Processor, tmp_path: Path
) -> Callable[[SafetyConfig | None], vlm.Model]:
    def make(config: SafetyConfig | None) -> vlm.Model:
        safety = None if config is None else Safety(config)
        return vlm.Model(open_model, processor, tmp_path, safety)

    return make


def test_an_answer_that_is_flagged_is_replaced_everywhere(
    model_with: Callable[[SafetyConfig | None], vlm.Model], picture: Callable[..., Image.Image]
) -> None:
    free = model_with(None).chat(QUESTION, logprobs=True, **SHORT)
    assert free.text and free.finish_reason == "length"
    # Anything but what is asked below.
    model = model_with(policy(anything=r"^(?!how many|describe)."))
    reply = model.chat(QUESTION, logprobs=True, **SHORT)
    assert (reply.text, reply.finish_reason, reply.logprobs) == (NOTICE, "content_filter", ())
    assert reply.usage == free.usage
    assert "".join(model.stream(QUESTION, **SHORT)) == NOTICE
    assert model.ask(picture(0), "How many?", **SHORT) == NOTICE
    assert model.caption(picture(0), **SHORT) == NOTICE


def test_a_policy_that_flags_nothing_changes_nothing(
    model_with: Callable[[SafetyConfig | None], vlm.Model],
) -> None:
    free, checked = model_with(None), model_with(policy(never="never said"))
    assert checked.chat(QUESTION, **SHORT) == free.chat(QUESTION, **SHORT)
    streamed = "".join(checked.stream(QUESTION, **SHORT))
    assert streamed == free.chat(QUESTION, **SHORT).text


def test_a_conversation_that_is_flagged_is_refused(
    model_with: Callable[[SafetyConfig | None], vlm.Model], picture: Callable[..., Image.Image]
) -> None:
    model = model_with(policy(secret="red"))
    for ask in (
        lambda: model.chat(QUESTION, **SHORT),
        lambda: list(model.stream(QUESTION, **SHORT)),
        lambda: model.ask(picture(0), "is it red?", **SHORT),
        lambda: model.choices(QUESTION, 2, **SHORT),
    ):
        with pytest.raises(ContentPolicyError, match="secret"):
            ask()


def test_the_commands_take_a_policy(
    open_model: VisionLanguageModel,
    processor: Processor,
    tmp_path: Path,
    picture: Callable[..., Image.Image],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    components = {name: getattr(open_model, name) for name in COMPONENTS}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=open_model.config
    )
    save_folder(tmp_path / "tiny", described, components, processor, {})
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "safety.yaml").write_text(
        "classifiers:\n"
        "  - kind: words\n"
        "    settings: {patterns: {secret: [red], all: ['^(?!.*(many|describe))']}}\n"
        f"replacement: '{NOTICE}'\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--safety", "safety.yaml", "--max-tokens", "8", "--device", "cpu"]
    assert cli.main(["ask", "tiny", "a.png", "How many?", *options]) == 0
    assert capsys.readouterr().out.strip() == NOTICE
    assert cli.main(["ask", "tiny", "a.png", "How many are red?", *options]) == 2
    assert "content policy: secret" in capsys.readouterr().err
    assert cli.main(["caption", "tiny", "a.png", *options]) == 2  # the notice is no caption
    told = capsys.readouterr()
    assert told.out == "" and f"a.png: {NOTICE}" in told.err
    assert cli.main(["ask", "tiny", "a.png", "?", "--safety", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_picture_that_is_refused_leaves_the_captions_of_others(
    model_with: Callable[[SafetyConfig | None], vlm.Model],
    picture: Callable[..., Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "dark_captions.py").write_text(
        "class Dark:\n"
        "    def classify(self, content):\n"
        "        dark = any(p.getextrema() == ((0, 0),) * 3 for p in content.pictures)\n"
        "        return {'dark': float(dark)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rules = {"classifiers": [{"kind": "dark_captions:Dark"}]}
    model = model_with(SafetyConfig.model_validate(rules))
    paths = [tmp_path / name for name in ("a.png", "dark.png", "b.png")]
    for path, made in zip(paths, (picture(0), Image.new("RGB", (16, 16)), picture(1)), strict=True):
        made.save(path)
    (found,) = caption_files(model, paths, max_tokens=4)
    assert [made.caption is None for made in found] == [False, True, False]
    assert "dark.png" in str(found[1].problem) and "content policy: dark" in str(found[1].problem)
