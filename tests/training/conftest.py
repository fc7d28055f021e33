"""Tiny scenes and tiny stages, trained once and shared by the tests of this room."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.encode import without_images
from data.pack import pack
from data.schema import RawSample
from data.shape_samples import scene_samples, write_scenes
from data.shapes import SceneConfig
from training.config import StageName, TrainConfig
from training.run import train_stage
from training.setup import Setup, build_setup
from vlm.config import VLMConfig

MakeConfig = Callable[..., TrainConfig]

SCENES = SceneConfig(tile_size_px=24, questions_per_type={"count": 1, "colour": 1, "shape": 1})
TEXT_TOWER = {
    "vocab_size": 300,
    "max_tokens": 48,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "embedding_size": 16,
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards `train` (12 scenes), `validation` (5) and `text` (12 scenes without pictures)."""
    folder = tmp_path_factory.mktemp("shards")
    write_scenes(folder / "train", 12, 1, SCENES, "both", samples_per_shard=5)
    write_scenes(folder / "validation", 5, 2, SCENES, "both")
    scenes = scene_samples(12, 3, SCENES, "both")
    pack(map(without_pictures, scenes), folder / "text", samples_per_shard=5)
    return folder


def without_pictures(raw: RawSample) -> RawSample:
    """The same chat, about nothing to be seen."""
    messages = without_images(raw.sample.messages)
    return RawSample(raw.key, raw.sample.model_copy(update={"messages": messages}), [])


@pytest.fixture(scope="session")
def make_config(tiny_config: VLMConfig, shards: Path) -> MakeConfig:
    """`make_config(stage, out, **changes)`: three steps of a stage; sections are merged.

    align and finetune start from nothing yet: give `init_from`, as the fixture `parents` does.
    """

    def make(stage: StageName, out: Path, **changes: Any) -> TrainConfig:
        text = stage == "text"
        plain: dict[str, Any] = {
            "stage": stage,
            "out": out,
            "model": tiny_config.model_dump(),
            "data": {
                "train": [shards / ("text" if text else "train")],
                "validation": [] if text else [shards / "validation"],
                "batch_samples": 4,
                "pool_batches": 2,
                "max_tokens": 48 if stage == "encoder" else 160,
                "split_turns": True,
            },
            "optim": {"learning_rate": 1e-2, "warmup_steps": 2},
            "steps": 3,
            "log_every": 1,
            "device": "cpu",
        }
        if stage == "encoder":
            plain["contrastive"] = {"text_tower": TEXT_TOWER}
        for key, value in changes.items():
            merge = isinstance(value, dict) and isinstance(plain.get(key), dict)
            plain[key] = {**plain[key], **value} if merge else value
        return TrainConfig.model_validate(plain)

    return make


@pytest.fixture(scope="session")
def parents(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of finished stages: `text`, `encoder` and `align`."""
    folder = tmp_path_factory.mktemp("parents")
    train_stage(make_config("text", folder / "text"))
    start = {"tokenizer": folder / "text"}
    train_stage(make_config("encoder", folder / "encoder", init_from=start))
    start = {"decoder": folder / "text", "encoder": folder / "encoder"}
    train_stage(make_config("align", folder / "align", init_from=start))
    return folder


@pytest.fixture(scope="session")
def stage_config(make_config: MakeConfig, parents: Path) -> MakeConfig:
    """`make_config` that starts each stage from `parents`."""
    starts: dict[str, dict[str, Path]] = {
        "text": {},
        "encoder": {"tokenizer": parents / "text"},
        "align": {"decoder": parents / "text", "encoder": parents / "encoder"},
        "finetune": {"model": parents / "align"},
    }

    def make(stage: StageName, out: Path, **changes: Any) -> TrainConfig:
        return make_config(stage, out, **{"init_from": starts[stage], **changes})

    return make


@pytest.fixture(scope="session")
def finetune_setup(stage_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Objects of a finetune stage, for tests that read them only."""
    return build_setup(stage_config("finetune", tmp_path_factory.mktemp("unused") / "finetune"))
