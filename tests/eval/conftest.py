"""A tiny random model in a folder, and finished evaluations whose answers are made up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from data.shape_samples import write_scenes
from data.shapes import SceneConfig
from eval.benchmark import BenchmarkConfig, describe, find_benchmark
from eval.items import Item, items_sha256
from eval.predictions import Prediction, PredictionFile
from eval.report import DataFacts, ModelFacts, Run, Side, build_report, write_report
from eval.run import predictions_path
from eval.scoring import majority_answers, read_answers, score
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder

NUM_SCENES = 12
CONFIG = VLMConfig.model_validate(
    {
        "vision": {
            "tile_size_px": 24,
            "patch_size_px": 12,
            "max_num_tiles": 4,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "num_local_layers": 1,
            "num_global_layers": 1,
            "intermediate_layers": [0],
        },
        "projector": {},
        "decoder": {
            "vocab_size": 300,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_layers": 4,
            "num_heads": 2,
            "num_kv_heads": 1,
            "max_positions": 8192,
        },
    }
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    processor = Processor.train(["how many circles are there?"] * 4, CONFIG.vision, 300)
    network = VisionLanguageModel(CONFIG, processor.tokenizer.image_id)
    for name, parameter in network.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.ones_(parameter)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    components = {name: getattr(network, name) for name in ("encoder", "projector", "decoder")}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=CONFIG
    )
    provenance = {"stage": "finetune", "seed": 5, "commit": "c0ffee"}
    save_folder(folder, described, components, processor, provenance)
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> vlm.Model:
    return vlm.load(model_folder, device="cpu")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed questions about rendered scenes, several a picture."""
    folder = tmp_path_factory.mktemp("scenes") / "test"
    write_scenes(folder, NUM_SCENES, 0, SceneConfig(tile_size_px=24))
    return folder


@pytest.fixture(scope="session")
def finish() -> Callable[..., Path]:
    """`finish(out, data, answer, model="runs/m", overrides=(), limit=None)`: write the report and
    the predictions of an evaluation in which `answer(item)` is what the model said."""

    def write(
        out: Path,
        data: Path,
        answer: Callable[[Item], str],
        model: str = "runs/m",
        overrides: tuple[str, ...] = (),
        limit: int | None = None,
        **changed: Any,
    ) -> Path:
        benchmark = find_benchmark("shards", overrides)
        items = list(benchmark.items(data))[:limit]
        said = [Prediction(id=item.id, text=answer(item), images=("ab",)) for item in items]
        unseen = [Prediction(id=item.id, text="no") for item in items]
        _write_predictions(predictions_path(out), said)
        answers = {"model": said, "blind": unseen}
        sides: dict[Side, Any] = {
            side: score(benchmark, items, read_answers(benchmark, items, answers[side]))
            for side in ("model", "blind")
        }
        sides["majority"] = score(benchmark, items, majority_answers(items, items))
        digest = items_sha256(items, (p.images for p in said))
        run = _receipt(benchmark, data, model, len(items), limit, digest)
        write_report(out, build_report(benchmark.title, sides, run.model_copy(update=changed)))
        return out

    return write


def _write_predictions(path: Path, predictions: list[Prediction]) -> None:
    with PredictionFile(path, {}) as file:
        file.append(predictions)


def _receipt(
    benchmark: BenchmarkConfig, data: Path, model: str, num: int, limit: int | None, digest: str
) -> Run:
    return Run(
        model=ModelFacts(
            folder=model, stage="finetune", weights_sha256={"w": model}, seed=3, commit="c1"
        ),
        data=DataFacts(
            folder=str(data), sha256=digest, num_items=num, limit=limit, num_published=None
        ),
        majority_from=None,
        benchmark=dict(describe(benchmark)),
        prompt="user: <image> is it red?",
        preprocessing={"tile_size_px": 24},
        max_answer_tokens=8,
        num_cut=0,
        batch_size=2,
        device="cpu",
        dtype="float32",
        commit="c2",
        versions={"torch": "2"},
        seconds=1.5,
        command="vlm eval runs/m --data test",
    )
