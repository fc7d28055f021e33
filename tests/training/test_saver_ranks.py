"""Ranks save one checkpoint together, each its own file, and all of them or none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "saver_ranks_program.py"
ROOT = PROGRAM.parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has seen."""
    out = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_each_rank_writes_its_file_into_the_same_checkpoint(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["first"] is None and rank["last"] is None
        files = ["manifest.json", "rank0.safetensors", "rank1.safetensors", "state.json"]
        assert rank["files"] == files and rank["resumed"] == 3


def test_what_one_rank_cannot_write_no_rank_has_saved(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert "step-00000002 needs 8 bytes and cannot be written" in rank["broken"]
        assert "No space left on device" in rank["broken"]
        assert rank["broken"].endswith("step-00000001")
        assert rank["checkpoints"] == ["step-00000001", "step-00000003"]


def test_a_signal_to_one_rank_stops_all(seen: list[dict[str, Any]]) -> None:
    assert [rank["told"] for rank in seen] == [False, True]
    assert [rank["stops"] for rank in seen] == [1, 1]
