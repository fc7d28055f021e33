"""Row 40 of the table of faults: SIGTERM while answers are being written."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[3]
START_S = 120  # importing torch on a busy machine


@contextmanager
def stub_process(**settings: Any) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """A server in a process of its own, that answers a token in 50 ms."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [json.dumps({"port": port, **settings}), "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-m", "eval.speed.stub_server", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
            end = time.monotonic() + START_S
            while True:
                try:
                    if client.get("/ready").status_code == 200:
                        break
                except httpx2.TransportError:
                    assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.communicate()


def ask(client: httpx2.Client, **settings: Any) -> httpx2.Response:
    messages = [{"role": "user", "content": "How many?"}]
    body = {"model": "stub", "messages": messages, **settings}
    return client.post("/v1/chat/completions", json=body)


def test_40_sigterm_finishes_what_is_in_flight_and_exits_with_0() -> None:
    with stub_process() as (process, client):
        answers: list[httpx2.Response] = []

        def ask_for_long(stream: bool) -> None:
            answers.append(ask(client, max_tokens=30, stream=stream))

        threads = [threading.Thread(target=ask_for_long, args=(bool(i % 2),)) for i in range(6)]
        for thread in threads:
            thread.start()
        while "vlm_answers_open 6.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while (ready := client.get("/ready")).status_code == 200:
            time.sleep(0.01)
        assert ready.status_code == 503 and client.get("/health").status_code == 200
        refused = ask(client, max_tokens=1)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 6
        for answer in answers:
            if answer.headers["content-type"] == "application/json":
                assert answer.json()["usage"]["completion_tokens"] == 30
            else:
                assert answer.text.endswith("data: [DONE]\n\n")
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (drained,) = [line for line in lines if line["message"] == "drained"]
    assert drained["unfinished"] == 0
    asked = [line for line in lines if line.get("route") == "/v1/chat/completions"]
    assert [line["completion_tokens"] for line in asked if line["status"] == 200] == [30] * 6
    assert "How many" not in log


def test_40_a_drain_ends_when_its_time_is_over() -> None:
    with stub_process(drain_s=0.5) as (process, client):
        with client.stream(
            "POST",
            "/v1/chat/completions",
            json={
                "model": "stub",
                "messages": [{"role": "user", "content": "How many?"}],
                "max_tokens": 1000,
                "stream": True,
            },
        ) as stream:
            next(stream.iter_bytes())
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        assert process.returncode == 0 and time.monotonic() - start < 10
