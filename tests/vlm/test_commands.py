"""ask, caption, chat and env on a tiny random model, against the API that they stand on."""

import inspect
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vlm
from vlm import captioning, cli, commands
from vlm.api import Model
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.model import VisionLanguageModel
from vlm.replies import AnswerConfig
from vlm.weights.folder import FORMAT, FolderConfig, save_folder

CONFIG = VLMConfig.model_validate(
    {
        "vision": {
            "tile_size_px": 16,
            "patch_size_px": 8,
            "max_num_tiles": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "num_local_layers": 1,
            "num_global_layers": 1,
            "intermediate_layers": [0],
        },
        "projector": {},
        "decoder": {
            "vocab_size": 300,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_layers": 4,
            "num_heads": 2,
            "num_kv_heads": 1,
            "max_positions": 256,
        },
    }
)
QUESTION = "How many circles?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights and open gates: answers depend on pictures."""
    torch.manual_seed(0)
    processor = Processor.train([QUESTION] * 4, CONFIG.vision, 300)
    network = VisionLanguageModel(CONFIG, processor.tokenizer.image_id)
    for name, parameter in network.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.ones_(parameter)
        if "cross_attn.o_proj" in name:
            parameter.data.mul_(6)
    folder = tmp_path_factory.mktemp("model")
    components = {name: getattr(network, name) for name in ("encoder", "projector", "decoder")}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=CONFIG
    )
    save_folder(folder, described, components, processor, {})
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return vlm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("pictures")
    for name in ("red", "blue"):
        Image.new("RGB", (20, 10), name).save(place / f"{name}.png")
    return [str(place / "red.png"), str(place / "blue.png")]


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments), "--device", "cpu", "--max-tokens", "6"])


def test_ask_prints_the_answer(
    folder: Path, model: Model, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ask", folder, pictures[0], QUESTION) == 0
    answer = capsys.readouterr().out
    assert answer.endswith("\n")
    assert answer.strip() == model.ask(pictures[0], QUESTION, max_tokens=6)


def test_ask_takes_several_pictures(
    folder: Path, model: Model, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = set()
    for chosen in (pictures[:1], pictures, [*pictures, pictures[1]]):
        assert run("ask", folder, *chosen, QUESTION) == 0
        answers.add(capsys.readouterr().out.strip())
        assert model.ask(chosen, QUESTION, max_tokens=6) in answers
    assert len(answers) > 1


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--temperature", "2", "--seed", "7"], {"temperature": 2.0, "seed": 7}),
        (
            ["--temperature", "2", "--seed", "7", "--top-p", "0.1"],
            {"temperature": 2.0, "seed": 7, "top_p": 0.1},
        ),
        (
            ["--temperature", "9", "--seed", "7", "--top-k", "3"],
            {"temperature": 9.0, "seed": 7, "top_k": 3},
        ),
        (
            ["--temperature", "9", "--seed", "7", "--min-p", "0.5"],
            {"temperature": 9.0, "seed": 7, "min_p": 0.5},
        ),
        (["--repetition-penalty", "0.1"], {"repetition_penalty": 0.1}),
        (["--max-tokens", "2"], {"max_tokens": 2}),
    ],
)
def test_every_setting_reaches_the_model(
    options: list[str],
    settings: dict[str, Any],
    folder: Path,
    model: Model,
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["ask", str(folder), pictures[0], QUESTION, "--device", "cpu"]
    assert cli.main([*arguments, "--max-tokens", "6", *options]) == 0
    answer = capsys.readouterr().out.strip()
    assert answer == model.ask(pictures[0], QUESTION, **{"max_tokens": 6, **settings})
    assert answer != model.ask(pictures[0], QUESTION, max_tokens=6)


def test_stop_ends_the_answer_before_the_first_of_its_texts(
    folder: Path, model: Model, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = model.ask(pictures[0], QUESTION, max_tokens=6)
    stop = answer[len(answer) // 2]
    assert run("ask", folder, pictures[0], QUESTION, "--stop", "@@", "--stop", stop) == 0
    assert capsys.readouterr().out.strip() == answer.partition(stop)[0].strip()


def test_options_default_to_those_of_the_api() -> None:
    shown = {"max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"}
    defaults = AnswerConfig().model_dump(include=shown) | {"stop": None, "safety": None}
    for command in (commands.ask, commands.caption, commands.chat):
        parameters = inspect.signature(command).parameters
        assert {name: parameters[name].default for name in defaults} == defaults


def test_caption_prints_a_line_for_each_picture(
    folder: Path,
    model: Model,
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captioning, "BATCH_IMAGES", 2)
    chosen = [*pictures, pictures[0]]
    assert run("caption", folder, *chosen) == 0
    captions = [" ".join(model.caption(picture, max_tokens=6).split()) for picture in chosen]
    expected = [f"{path}: {text}" for path, text in zip(chosen, captions, strict=True)]
    assert capsys.readouterr().out.split("\n")[:-1] == expected


def test_caption_names_an_unreadable_picture_and_describes_the_others(
    folder: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert run("caption", folder, pictures[0], broken, pictures[1]) == 2
    output = capsys.readouterr()
    assert [line.partition(": ")[0] for line in output.out.splitlines()] == pictures
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert "broken.png" in output.err


def test_chat_remembers_pictures_and_turns_until_reset(
    folder: Path,
    model: Model,
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = [f"/image {pictures[0]}", QUESTION, "", "And now?"]
    lines = [*shown, f"/image {pictures[1]}", "/reset", "Hello", "/quit", "No"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert run("chat", folder) == 0

    image = {"type": "image", "image": pictures[0]}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]
    first = model.chat(messages, max_tokens=6).text
    messages.append({"role": "assistant", "content": first})
    messages.append({"role": "user", "content": "And now?"})
    second = model.chat(messages, max_tokens=6).text
    third = model.chat([{"role": "user", "content": "Hello"}], max_tokens=6).text
    printed = capsys.readouterr().out
    assert "".join(printed.split()) == "".join((first + second + third).split())


def test_chat_goes_on_after_a_mistake_as_if_it_had_not_been_made(
    folder: Path, model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["/image nowhere.png", "/rest", "word " * 300, "Hello"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert run("chat", folder) == 0
    output = capsys.readouterr()
    errors = output.err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)
    assert "nowhere.png" in errors[0] and "/rest" in errors[1] and "256 positions" in errors[2]
    reply = model.chat([{"role": "user", "content": "Hello"}], max_tokens=6)
    assert output.out.strip() == reply.text


@pytest.mark.parametrize("command", ["ask", "caption"])
def test_missing_model_or_picture_is_one_line(
    command: str, folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    question = [QUESTION] if command == "ask" else []
    for arguments, culprit in (
        ([folder / "nowhere", pictures[0]], "nowhere"),
        ([folder, "missing.png"], "missing.png"),
    ):
        assert run(command, *arguments, *question) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and culprit in error


def test_env_prints_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["torch"] == torch.__version__.partition("+")[0]
    assert {"commit", "python", "vlm", "transformers", "timm", "webdataset", "CUDA"} <= set(facts)
