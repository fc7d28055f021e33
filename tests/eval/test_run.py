"""A whole evaluation, on a tiny random model and a few rendered scenes."""

import json
from pathlib import Path

import pytest
import torch

import vlm
from data.pack import Manifest, file_sha256
from data.shape_samples import write_scenes
from data.shapes import SceneConfig
from eval.predict import read_predictions
from eval.questions import read_questions
from eval.run import EvalConfig, evaluate
from vlm import cli
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder

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
            "max_positions": 256,
        },
    }
)
NUM_SCENES = 3
SETTINGS = EvalConfig(batch_size=8, max_tokens=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "test"
    write_scenes(folder, NUM_SCENES, 0, SceneConfig(tile_size_px=24), "both")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with open gates: answers make no sense, but depend on the picture."""
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


@pytest.fixture(scope="module")
def model(model_folder: Path) -> vlm.Model:
    return vlm.load(model_folder, device="cpu")


def test_every_question_is_answered_as_ask_answers_it(model: vlm.Model, data: Path) -> None:
    evaluation = evaluate(model, data, SETTINGS)
    questions = list(read_questions(data))
    assert [p.key for p in evaluation.predictions] == [q.key for q in questions]
    for question, prediction in list(zip(questions, evaluation.predictions, strict=True))[:4]:
        asked = model.ask(question.images, question.text, max_tokens=4)
        assert prediction.prediction == asked
        assert prediction.blind_prediction == model.ask([], question.text, max_tokens=4)
    assert any(p.prediction != p.blind_prediction for p in evaluation.predictions)


def test_batch_size_changes_no_answer(model: vlm.Model, data: Path) -> None:
    alone = evaluate(model, data, EvalConfig(limit=5, batch_size=1, max_tokens=4))
    together = evaluate(model, data, EvalConfig(limit=5, batch_size=5, max_tokens=4))
    assert alone.predictions == together.predictions


def test_the_report_names_what_was_measured(
    model: vlm.Model, model_folder: Path, data: Path
) -> None:
    report = evaluate(model, data, EvalConfig(limit=5, max_tokens=2), majority_from=data).report
    weights = model_folder / "model.safetensors"
    assert report.run.model.weights_sha256 == {weights.name: file_sha256(weights)}
    assert (report.run.model.seed, report.run.model.commit) == (5, "c0ffee")
    assert report.run.data.manifest_sha256 == Manifest.read(data).sha256
    assert report.run.data.limit == report.overall.num_questions == 5
    assert report.run.majority_from is not None and report.run.majority_from.limit is None
    assert "torch" in report.run.versions


def test_captions_alone_are_no_questions(model: vlm.Model, tmp_path: Path) -> None:
    write_scenes(tmp_path / "captions", 2, 0, SceneConfig(tile_size_px=24), "captions")
    with pytest.raises(UserError, match="holds no question"):
        evaluate(model, tmp_path / "captions", SETTINGS)


def test_the_command_prints_a_table_and_writes_the_files(
    model_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(model_folder), "--data", str(data), "--limit", "5"]
    assert cli.main([*arguments, "--max-tokens", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "blind" in printed and "majority" in printed
    out = model_folder / "eval" / "test.json"
    content = json.loads(out.read_text())
    assert {"accuracy", "blind_accuracy", "majority_accuracy"} <= set(content)
    assert content["overall"]["num_questions"] == 5
    assert len(read_predictions(out.with_name("test.predictions.jsonl"))) == 5
    assert out.with_suffix(".md").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"--data": "nowhere"}, "nowhere"),
        ({"--out": "report.txt"}, "report.txt"),
        ({"--out": "/dev/null/report.json"}, "/dev/null/report.json"),
        ({"--majority-from": "nowhere-else"}, "nowhere-else"),
        ({"--limit": "0"}, "--limit"),
        ({"MODEL": "no-model"}, "no-model"),
    ],
)
def test_a_mistake_is_one_line(
    change: dict[str, str],
    part: str,
    model_folder: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = {"MODEL": str(model_folder), "--data": str(data), "--device": "cpu", **change}
    options = [w for name, value in words.items() if name != "MODEL" for w in (name, value)]
    assert cli.main(["eval", words["MODEL"], *options]) == 2
    error = capsys.readouterr().err.strip()
    assert part in error and len(error.splitlines()) == 1


def test_a_transformers_folder_is_measured_too(mllama_source: Path, data: Path) -> None:
    model = vlm.load(mllama_source, device="cpu", dtype="float32")
    facts = evaluate(model, data, SETTINGS).report.run.model
    assert (facts.stage, facts.seed, facts.commit) == ("mllama", None, None)
    assert facts.weights_sha256 == {
        "model.safetensors": file_sha256(mllama_source / "model.safetensors")
    }
