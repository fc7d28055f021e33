"""The log of consumed samples reads like that of a run that was never stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.config import TrainConfig
from training.distributed import streams_of_step
from training.run import train_stage
from training.sample_log import SAMPLES_FILE, SampleLog
from vlm.errors import UserError

MakeConfig = Callable[..., TrainConfig]


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]


def test_every_step_is_logged_and_a_resumed_run_logs_the_same(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"steps": 7, "checkpoint_every": 3, "batches_per_step": 2}
    settings["data"] = {"log_samples": True}
    whole = stage_config("align", tmp_path / "whole", **settings)
    train_stage(whole)
    records = logged(whole.out)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert all(len(record["batches"]) == 2 and all(record["batches"]) for record in records)
    resumed = stage_config("align", tmp_path / "resumed", **settings)
    # The run died behind its first checkpoint, and had logged more than that holds.
    checkpoint = "checkpoints/step-00000003"
    (resumed.out / "checkpoints").mkdir(parents=True)
    (whole.out / checkpoint).rename(resumed.out / checkpoint)
    (resumed.out / SAMPLES_FILE).write_text(
        "".join(json.dumps(record) + "\n" for record in records[:5])
    )
    train_stage(resumed, resume=True)
    assert logged(resumed.out) == records


def test_nothing_is_logged_unless_it_is_asked_for(stage_config: MakeConfig, tmp_path: Path) -> None:
    train_stage(stage_config("align", tmp_path, steps=1))
    assert not (tmp_path / SAMPLES_FILE).exists()


def test_a_new_run_forgets_the_log_of_another(tmp_path: Path) -> None:
    for first_step, expected in ((0, [1]), (1, [1, 2])):
        log = SampleLog(tmp_path, first_step)
        log.record(first_step + 1, [("a", "b"), ("c",)])
        log.close()
        assert [record["step"] for record in logged(tmp_path)] == expected
    assert logged(tmp_path)[0]["batches"] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(("batches", "ranks"), [(3, 2), (1, 2)])
def test_batches_that_processes_cannot_share_evenly_are_refused(batches: int, ranks: int) -> None:
    assert streams_of_step(None, ranks) == streams_of_step(ranks, ranks) == ranks
    with pytest.raises(UserError, match=f"{batches} cannot be shared evenly by {ranks} processes"):
        streams_of_step(batches, ranks)
