"""The demo without a browser: what it refuses, what it draws, what it keeps."""

import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
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
from vlm.demo.run import running
from vlm.demo.uploads import read_upload
from vlm.errors import UserError

MAX_BYTES = 20_000
FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def model(open_model_folder: Path) -> Model:
    return vlm.load(open_model_folder, device="cpu")


@dataclass
class Page:
    """A demo that runs in this process."""

    client: httpx2.Client
    uploads: Path

    def upload(self, name: str, content: bytes) -> httpx2.Response:
        """Upload a file as the page does."""
        return self.client.post("/gradio_api/upload", files={"files": (name, content)})

    def join(self, path: str, **more: Any) -> httpx2.Response:
        """Ask for the caption of a file."""
        config = self.client.get("/config").json()
        named = [d for d in config["dependencies"] if "change" in [t[1] for t in d["targets"]]]
        data = [{"path": path, "meta": FILE, **more}]
        body = {"data": data, "fn_index": named[0]["id"], "session_hash": "s"}
        return self.client.post("/gradio_api/queue/join", json=body)


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Page]:
    config = DemoConfig(port=0, max_image_bytes=MAX_BYTES, max_tokens=4)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_TEMP_DIR", "")
        environment.setenv("GRADIO_ANALYTICS_ENABLED", "")
        with running(model, config) as address:
            with httpx2.Client(base_url=address, timeout=20, trust_env=False) as client:
                yield Page(client, Path(os.environ["GRADIO_TEMP_DIR"]))


def test_an_uploaded_picture_is_taken_and_one_too_large_is_not(
    served: Page, picture: Callable[..., Image.Image]
) -> None:
    content = io.BytesIO()
    picture(1).save(content, "PNG")
    (path,) = served.upload("a.png", content.getvalue()).json()
    assert Path(path).is_relative_to(served.uploads)
    assert served.join(path).status_code == 200
    assert served.upload("b.png", b"0" * (MAX_BYTES + 1)).status_code == 413


@pytest.mark.parametrize("named", ["{file}", "{uploads}/../secret", "file://{file}", "{url}", 1])
def test_no_file_but_an_uploaded_one_is_read_and_nothing_is_fetched(
    served: Page, named: Any, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sink:
        sink.settimeout(0.2)
        secret = tmp_path / "secret.png"
        Image.new("RGB", (4, 4)).save(secret)
        url = f"http://127.0.0.1:{sink.getsockname()[1]}/a.png"
        if isinstance(named, str):
            named = named.format(file=secret, uploads=served.uploads, url=url)
        assert served.join(named).status_code == 400
        assert served.join(str(served.uploads / "a"), url="data:image/png,x").status_code == 400
        with pytest.raises(TimeoutError):
            sink.accept()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/theme.css", 200),
        ("GET", "/gradio_api/file=/etc/hostname", 403),
        ("GET", "/gradio_api/file=http://127.0.0.1/", 404),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/", 404),
        ("GET", "/monitoring", 404),
        ("GET", "/docs", 404),
        ("POST", "/gradio_api/run/describe", 404),
        ("POST", "/gradio_api/process_recording", 404),
        ("POST", "/gradio_api/queue/join", 400),
        ("DELETE", "/", 404),
    ],
)
def test_only_what_the_page_needs_is_offered(
    served: Page, method: str, path: str, status: int
) -> None:
    response = served.client.request(method, path)
    assert response.status_code == status
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy


def test_a_large_request_is_refused(served: Page) -> None:
    body = json.dumps({"data": ["x" * 5_000_000]})
    assert served.client.post("/gradio_api/queue/join", content=body).status_code == 413


def test_the_page_names_no_other_host(served: Page) -> None:
    config = served.client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert "http" not in served.client.get("/theme.css").text


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
        assert len(set(drawn.getdata())) > 10


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


def test_the_brightest_patch_is_drawn_brightest_and_tiles_are_framed() -> None:
    placement = Placement((1, 2), (16, 32), 16, 8)
    patches = torch.zeros(2, 4)
    patches[1, 2] = 0.5
    grey = Image.new("RGB", (32, 16), (100, 100, 100))
    drawn = np.asarray(draw_attention(grey, placement, patches, [0.25, 0.75])).astype(int)
    assert drawn.shape == (360, 720, 3)
    assert drawn[270, 450].tolist() == [185, 98, 45]  # 45 % of the picture, 55 % of the glow
    assert drawn[270, 630].tolist() == [35, 35, 35]  # dimmed
    assert drawn[200, 361].tolist() == [255, 255, 255]  # the frame of the right tile
    assert (drawn[6:30, 8:60] > 200).any()  # its share, written
