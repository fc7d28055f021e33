"""What docs/serving.md shows works."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.server.config import ServerConfig

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(
    serve: Any, encoded: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A server of a model called `finetune`, and a working folder with the page's pictures."""
    (tmp_path / "photo.jpg").write_bytes(encoded(1, "JPEG"))
    (tmp_path / "drawing.png").write_bytes(encoded(2))
    monkeypatch.chdir(tmp_path)
    return serve(name="finetune")


def test_the_python_block_runs(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    namespace: dict[str, Any] = {}
    exec(compile(code.replace(ADDRESS, here.url), "serving.md", "exec"), namespace)
    namespace["client"].close()
    assert capsys.readouterr().out.count("Two red circles.") == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_commands_run(here: Any) -> None:
    shown = "".join(text for text in blocks("sh") if "curl" in text)
    calls = [f"curl{call}" for call in shown.split("curl")[1:]]
    assert len(calls) == 4
    for call in calls:
        command = call.replace(ADDRESS, here.url).replace("curl", "curl -sS --fail", 1)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert '"model":"finetune"' in done.stdout.replace(" ", "")


def test_every_setting_is_named() -> None:
    missing = [name for name in ServerConfig.model_fields if f"`{name}`" not in PAGE]
    shown = {"host", "port", "api_keys", "allow_image_hosts", "allow_image_folder"}
    assert set(missing) <= {*shown, "allow_image_networks"}
    assert "`allow_image_networks=" in PAGE
