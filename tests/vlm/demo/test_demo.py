"""The demo without a browser: what it refuses, what it draws, what it keeps."""

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlm
from encoders.tiling import choose_canvas
from vlm import cli
from vlm.api import Model
from vlm.attention_maps import Placement
from vlm.demo.chat import Turn, asked, shown, to_messages
from vlm.demo.config import DemoConfig
from vlm.demo.examples import EXAMPLES, draw_example
from vlm.demo.looking import ALL_LAYERS, ALL_WORDS, draw_look, look
from vlm.demo.overlay import draw_attention
from vlm.demo.uploads import read_upload
from vlm.errors import UserError
from vlm.safety.config import SafetyConfig
from vlm.safety.policy import Safety

FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def model(open_model_folder: Path) -> Model:
    return vlm.load(open_model_folder, device="cpu")


def test_a_port_that_is_taken_is_named(
    open_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["demo", str(open_model_folder), "--device", "cpu", "--port", str(port)]
        assert cli.main(arguments) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert cli.main([*arguments, "--folder", "nowhere"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_what_must_be_installed_is_named(
    open_model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", str(open_model_folder), "--device", "cpu"]) == 2
    assert "pip install 'vlm[demo]'" in capsys.readouterr().err


def uploaded(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": "mine.png", "meta": FILE}


def test_uploads_have_the_servers_limits_and_messages_without_paths(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    path = tmp_path / "x.png"
    picture(1, 40, 30).save(path)
    assert read_upload(uploaded(path), DemoConfig()).size == (40, 30)
    with pytest.raises(UserError, match="limit of 1000") as error:
        read_upload(uploaded(path), DemoConfig(max_pixels=1000))
    assert "mine.png: " in str(error.value) and str(tmp_path) not in str(error.value)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"^mine\.png: ") as error:
        read_upload(uploaded(path), DemoConfig())
    assert str(tmp_path) not in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match="upload it again"):
        read_upload(uploaded(path), DemoConfig())


def test_a_conversation_keeps_pictures_and_answers_in_order(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    path = tmp_path / "x.png"
    picture(1).save(path)
    config = DemoConfig(max_images=2)
    talk = (Turn((uploaded(path),), "how many?", "two"),)
    turn = asked({"text": " and now? ", "files": [uploaded(path)]}, talk, config)
    messages = to_messages((*talk, turn), config)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [part["type"] for part in messages[0]["content"]] == ["image", "text"]
    assert messages[1]["content"] == "two"
    assert messages[2]["content"][1] == {"type": "text", "text": "and now?"}
    roles = [message["role"] for message in shown((*talk, turn))]
    assert roles == ["user", "user", "assistant", "user", "user"]
    with pytest.raises(UserError, match="3 pictures, allowed: 2"):
        asked({"text": "?", "files": [uploaded(path)] * 2}, talk, config)
    with pytest.raises(UserError, match="no question"):
        asked({"text": " ", "files": []}, talk, config)


def test_examples_have_the_models_canvases() -> None:
    for example in EXAMPLES:
        drawn = draw_example(example, 48)
        columns, rows = example.size
        assert drawn.size == (48 * columns, 48 * rows)
        assert choose_canvas(drawn.height, drawn.width, 48, 4) == (rows, columns)
        colours = drawn.getcolors(drawn.width * drawn.height)
        assert colours is not None and len(colours) > 10  # edges are smooth


def test_a_look_has_the_answers_words_and_draws_each(
    model: Model, picture: Callable[..., Image.Image]
) -> None:
    image = picture(1, 40, 30)
    seen = look(model, image, "How many?", 12)
    answer = model.ask(image, "How many?", max_tokens=12)
    assert [word.text for word in seen.words] == answer.split()
    whole, figures = draw_look(model, seen, ALL_WORDS, ALL_LAYERS)
    first, _ = draw_look(model, seen, 0, 8)
    assert whole.size == (720, 540) and whole.tobytes() != first.tobytes()
    assert "on padding" in figures and "stand for a whole tile" in figures
    with pytest.raises(UserError, match="no question"):
        look(model, image, " ", 12)


def test_a_look_at_what_the_policy_withholds_says_so(
    model: Model, picture: Callable[..., Image.Image]
) -> None:
    listed = {"patterns": {"all": ["^(?!how many)."]}}
    rules = {"classifiers": [{"kind": "words", "settings": listed}], "replacement": "[withheld]"}
    safety = Safety(SafetyConfig.model_validate(rules))
    checked = Model(model.network, model.processor, model.folder, safety)
    with pytest.raises(UserError, match="withheld"):
        look(checked, picture(3, 32, 16), "How many?", 12)


def test_the_brightest_patch_is_drawn_brightest_and_tiles_are_framed() -> None:
    placement = Placement((1, 2), (16, 32), 16, 8)
    patches = torch.zeros(2, 4)
    patches[1, 2] = 0.5
    grey = Image.new("RGB", (32, 16), (100, 100, 100))
    drawn = np.asarray(draw_attention(grey, placement, patches, [0.25, 0.75])).astype(int)
    assert drawn.shape == (360, 720, 3)
    assert drawn[270, 450].tolist() == [146, 99, 70]  # 70 % of the picture, 30 % of the glow
    assert drawn[270, 630].tolist() == [30, 30, 30]  # dimmed
    assert drawn[200, 361].tolist() == [255, 255, 255]  # the frame of the right tile
    assert (drawn[330:350, 10:60] > 200).any()  # its share, written


def test_every_setting_is_named_in_the_docs() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "serving.md").read_text()
    (section,) = re.findall(r"^## In a browser\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    missing = [name for name in DemoConfig.model_fields if f"`{name}`" not in section]
    assert missing == ["host", "port", "folder"]
    assert all(f"`--{name}`" in section for name in missing)
