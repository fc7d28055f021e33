"""Replicas behind Ray's proxy answer as one model does, share the work and outlive each other."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import vlm
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.folder import COMPONENTS, FORMAT, FolderConfig, save_folder

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

ROOT = Path(__file__).resolve().parents[3]
KEY = "a-key"
# Two processes that import torch, on a busy machine.
START_S = 240
ASKED = re.compile(r"pid=(\d+).*/v1/chat/completions.*\"status\": 200")
QUESTIONS = [f"How many circles are there, {number} or more?" for number in range(8)]


@dataclass
class Cluster:
    """The program that runs, what it has printed, and where it listens."""

    process: subprocess.Popen[str]
    lines: list[str]
    url: str
    folder: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=30)

    def replicas_that_answered(self) -> set[int]:
        """The ids of their processes, by their logs."""
        found = (ASKED.search(line) for line in list(self.lines))
        return {int(match.group(1)) for match in found if match}


@pytest.fixture
def cluster(
    tmp_path: Path, open_model: VisionLanguageModel, processor: Processor
) -> Iterator[Cluster]:
    components = {name: getattr(open_model, name) for name in COMPONENTS}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=open_model.config
    )
    save_folder(tmp_path / "tiny", described, components, processor, {})
    config = tmp_path / "serve.yaml"
    config.write_text(f"slots: 2\nqueue: 30\nmax_choices: 2\napi_keys: [{KEY}]\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    program = Path(__file__).with_name("ray_program.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "tiny"), str(config), port],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
        },
    )
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        lines.extend(process.stdout)  # a line at a time, as they come

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_for(lambda: "ready\n" in lines or process.poll() is not None, START_S)
        assert process.poll() is None, "".join(lines)
        yield Cluster(process, lines, f"http://127.0.0.1:{port}", tmp_path / "tiny")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            reader.join(10)
            assert process.stdout is not None
            process.stdout.close()


def wait_for(happened: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def answers(cluster: Cluster) -> list[str]:
    """What eight clients at the same time are told; nothing where a request fails."""
    told = [""] * len(QUESTIONS)

    def ask(number: int) -> None:
        with suppress(openai.APIError), cluster.client() as client:
            reply = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": QUESTIONS[number]}],
                max_tokens=24,
            )
            told[number] = str(reply.choices[0].message.content)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(told))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_replicas_answer_as_one_and_outlive_each_other(cluster: Cluster) -> None:
    model = vlm.load(cluster.folder, device="cpu", dtype="float32")
    expected = [
        model.chat([{"role": "user", "content": question}], max_tokens=24).text
        for question in QUESTIONS
    ]
    assert len(set(expected)) > 1
    # Both have part of the work; logs come a little later than answers.
    for _ in range(20):
        assert answers(cluster) == expected
        if len(cluster.replicas_that_answered()) == 2:
            break
    wait_for(lambda: len(cluster.replicas_that_answered()) == 2, 10)

    # Limits, errors and keys are those of `vlm serve`.
    with cluster.client() as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(
                model="other", messages=[{"role": "user", "content": "?"}]
            )
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "?"}], n=3
            )
        assert refused.value.param == "n"
        streamed = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": QUESTIONS[0]}],
            max_tokens=24,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in streamed]
        assert "".join(pieces) == expected[0]
    assert httpx2.get(f"{cluster.url}/ready", trust_env=False).status_code == 401

    # One replica's process dies: requests that it had may fail, those that follow do not.
    dead = min(cluster.replicas_that_answered())
    os.kill(dead, signal.SIGKILL)

    wait_for(lambda: answers(cluster) == expected, 30)
    for _ in range(3):
        assert answers(cluster) == expected


@pytest.mark.filterwarnings("ignore")  # of Ray's own modules, when they are imported
def test_settings_that_have_no_meaning_under_ray_are_refused(tmp_path: Path) -> None:
    from vlm.server.ray import RayConfig, application

    path = tmp_path / "serve.yaml"
    path.write_text("port: 9000\n")
    with pytest.raises(UserError, match="http_options"):
        application(RayConfig(model=tmp_path, config=path))
    with pytest.raises(ValueError, match="max_replicas is 1"):
        RayConfig(model=tmp_path, replicas=2, max_replicas=1)
    assert application(RayConfig(model=tmp_path, replicas=2, max_replicas=8, target_requests=4))
