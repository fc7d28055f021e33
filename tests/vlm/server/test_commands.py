"""`vlm serve` from the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from vlm import cli
from vlm.chat.processor import Processor
from vlm.config import load_config
from vlm.model import VisionLanguageModel
from vlm.server.commands import read_keys
from vlm.server.config import ServerConfig
from vlm.weights.folder import COMPONENTS, FORMAT, FolderConfig, save_folder

ROOT = Path(__file__).resolve().parents[3]
START_S = 120  # importing torch on a busy machine


@pytest.fixture
def folder(tmp_path: Path, open_model: VisionLanguageModel, processor: Processor) -> Path:
    components = {name: getattr(open_model, name) for name in COMPONENTS}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=open_model.config
    )
    save_folder(tmp_path / "tiny", described, components, processor, {})
    return tmp_path / "tiny"


def test_a_model_is_served_until_sigterm(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("first\n\nsecond\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["serve", str(folder), "--port", str(port), "--api-keys", "keys.txt", "slots=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlm", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as web:
            end = time.monotonic() + START_S
            while True:
                assert process.poll() is None and time.monotonic() < end
                try:
                    assert web.get("/health").status_code == 200
                    break
                except httpx2.TransportError:
                    time.sleep(0.1)
            assert web.post("/v1/ask", data={"question": "How many?"}).status_code == 401
            headers = {"authorization": "Bearer second"}
            body = {"question": "How many?", "max_tokens": "4"}
            answer = web.post("/v1/ask", data=body, headers=headers).json()
            assert answer["model"] == "tiny" and answer["usage"]["completion_tokens"] <= 4
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, log
    messages = [json.loads(line)["message"] for line in log.splitlines() if line.startswith("{")]
    assert "serving" in messages and "drained" in messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slots=0"], "slots"),
        (["slot=2"], "did you mean"),
        (["max_choices=100"], "slots and queue hold together: 72"),
        (["--api-keys", "nowhere.txt"], "nowhere.txt"),
        (["--allow-image-hosts", "http://example.com"], "allow_image_hosts"),
        (["--port", "99999"], "port"),
        (["--safety", "missing.yaml"], "missing.yaml"),
        (["safety.classifiers=[]"], "safety.classifiers"),
        ([], "nowhere"),
    ],
)
def test_a_wrong_setting_is_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", str(tmp_path / "nowhere"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_port_in_use_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", str(folder), "--port", port]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_settings_come_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("slots: 3\nallow_image_hosts: ['*.example.com']\ndrain_s: 5\n")
    config = load_config(ServerConfig, path, ["slots=4", "allow_image_networks=[10.0.0.0/8]"])
    assert (config.slots, config.drain_s) == (4, 5.0)
    assert config.allow_image_hosts == ("*.example.com",)
    assert [str(network) for network in config.allow_image_networks] == ["10.0.0.0/8"]
    assert load_config(ServerConfig, None) == ServerConfig()


def test_keys_are_the_lines_of_a_file_and_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(" key-1 \n\nkey-2\n")
    assert read_keys(path) == ["key-1", "key-2"]
    assert "key-1" not in repr(ServerConfig.model_validate({"api_keys": read_keys(path)}))
