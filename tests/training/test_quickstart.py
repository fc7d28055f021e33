"""The quickstart's stages follow one another, and it ends with what it promises."""

from pathlib import Path

import pytest

from training.quickstart import SCENES, STAGES, run_quickstart, stage_config
from training.stages import STAGES as TABLE
from vlm.errors import UserError


def test_each_stage_reads_and_starts_from_what_those_before_it_wrote(tmp_path: Path) -> None:
    finished: set[Path] = set()
    for stage in STAGES:
        config = stage_config(stage, tmp_path, seed=3, scale=0.5)
        assert (config.stage, config.seed, config.out) == (stage, 3, tmp_path / stage)
        parents = {parent for _, parent in config.init_from if parent is not None}
        assert parents <= finished
        assert {key for key, parent in config.init_from if parent} >= set(TABLE[stage].parents)
        folders = [source.path for source in config.data.sources] + list(config.data.validation)
        assert {Path(folder).parent for folder in folders} == {tmp_path / "shards"}
        finished.add(config.out)


def test_steps_are_scaled_and_a_schedule_with_them(tmp_path: Path) -> None:
    whole, half = (stage_config("finetune", tmp_path, 0, scale) for scale in (1.0, 0.5))
    assert half.steps == round(whole.steps / 2)
    assert half.optim.decay_steps is not None and whole.optim.decay_steps is not None
    assert half.optim.decay_steps == round(whole.optim.decay_steps / 2)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty; remove it, or choose another"):
        run_quickstart(tmp_path, seed=0, minutes=1)


@pytest.mark.slow
def test_the_whole_story_runs(tmp_path: Path) -> None:
    out = tmp_path / "story"
    report = run_quickstart(out, seed=0, minutes=0.02)
    assert set(report.types) == set(SCENES.questions_per_type)
    for name in ("report.html", "report.json", "evaluation.json", "finetune/model.safetensors"):
        assert (out / name).stat().st_size > 0
