"""A whole evaluation, on a tiny random model and a few rendered scenes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import vlm
from data.pack import file_sha256, pack
from data.shape_samples import write_scenes
from data.shapes import SceneConfig
from data.shards import read_folder
from eval.benchmark import BenchmarkConfig, find_benchmark
from eval.predictions import read_predictions
from eval.run import EvalConfig, Evaluation, evaluate, model_facts, predictions_path
from vlm import cli
from vlm.errors import UserError

NUM_SCENES = 3
SHORT = ("decoding.max_tokens=4",)
Run = Callable[..., Evaluation]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "test"
    write_scenes(folder, NUM_SCENES, 0, SceneConfig(tile_size_px=24), "both")
    return folder


@pytest.fixture
def benchmark() -> BenchmarkConfig:
    return find_benchmark("shards", SHORT)


@pytest.fixture
def run(model: vlm.Model, data: Path, benchmark: BenchmarkConfig, tmp_path: Path) -> Run:
    """Evaluate the tiny model, by default on the scenes."""

    def start(name: str = "report", batch_size: int = 8, limit: int | None = None) -> Evaluation:
        config = EvalConfig(batch_size=batch_size, limit=limit)
        return evaluate(model, benchmark, data, tmp_path / f"{name}.json", config)

    return start


def test_every_question_is_answered_as_ask_answers_it(
    model: vlm.Model, data: Path, benchmark: BenchmarkConfig, run: Run
) -> None:
    sides = run().sides
    items = list(benchmark.items(data))
    assert [item.id for item in sides["model"].items] == [item.id for item in items]
    for item, answer, blind in list(
        zip(items, sides["model"].answers, sides["blind"].answers, strict=True)
    )[:4]:
        images = [picture.read() for picture in item.images]
        assert answer.text == model.ask(images, item.question, max_tokens=4)
        assert blind.text == model.ask([], item.question, max_tokens=4)
    assert sides["model"].answers != sides["blind"].answers


def test_batch_size_changes_no_prediction(run: Run, tmp_path: Path) -> None:
    run("alone", batch_size=1, limit=5)
    run("together", batch_size=5, limit=5)
    for side in ("predictions", "blind"):
        one, other = (tmp_path / f"{name}.{side}.jsonl" for name in ("alone", "together"))
        assert one.read_bytes() == other.read_bytes()


def test_an_evaluation_that_was_killed_goes_on_to_the_same_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole", batch_size=2)
    whole = predictions_path(tmp_path / "whole.json")
    killed = predictions_path(tmp_path / "killed.json")
    header, *lines = whole.read_bytes().splitlines(keepends=True)
    killed.write_bytes(header + b"".join(lines[:13]) + lines[13][:20])
    asked = []
    plain = vlm.Model.chat_batch

    def counted(model: vlm.Model, chats: list, *args: object, **settings: object) -> list:
        asked.extend(chats)
        return plain(model, chats, *args, **settings)

    monkeypatch.setattr(vlm.Model, "chat_batch", counted)
    again = run("killed", batch_size=2)
    assert killed.read_bytes() == whole.read_bytes()
    num_items = len(again.scored.items)
    with_pictures = [chat for chat in asked if chat[0]["content"][0]["type"] == "image"]
    assert 0 < len(with_pictures) < num_items
    asked.clear()
    run("killed", batch_size=2)
    assert not asked


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_no_prediction(
    model: vlm.Model, model_folder: Path, benchmark: BenchmarkConfig, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "killed.json"
    write_scenes(data, 40, 0, SceneConfig(tile_size_px=24), "questions")
    arguments = [
        "eval",
        str(model_folder),
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "vlm", *arguments, "--batch-size", "1", *SHORT],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    ) as process:
        path = predictions_path(out)
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > 8):
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
    kept = path.read_bytes()
    evaluate(model, benchmark, data, out)
    evaluate(model, benchmark, data, tmp_path / "whole.json")
    assert path.read_bytes() == predictions_path(tmp_path / "whole.json").read_bytes()
    assert path.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])


def test_predictions_of_other_settings_are_refused_until_fresh(
    model: vlm.Model, data: Path, benchmark: BenchmarkConfig, tmp_path: Path
) -> None:
    out, five = tmp_path / "r.json", EvalConfig(limit=5)
    evaluate(model, benchmark, data, out, five)
    other = benchmark.model_copy(update={"prompt": "{question} Be brief."})
    with pytest.raises(UserError, match=r"benchmark\.prompt was '\{question\}', is .*--fresh"):
        evaluate(model, other, data, out, five)
    again = evaluate(model, other, data, out, EvalConfig(limit=5, fresh=True))
    assert "Be brief.<|eot_id|>" in again.report.run.prompt


@pytest.mark.slow
def test_processes_share_the_items(
    run: Run, model_folder: Path, data: Path, tmp_path: Path
) -> None:
    run("alone")
    out = tmp_path / "shared.json"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vlm"]
    arguments = [
        "eval",
        str(model_folder),
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command, *arguments, *SHORT], env=environment, check=True, timeout=200
    )
    for side in ("model", "blind"):
        alone, shared = (predictions_path(path, side) for path in (tmp_path / "alone.json", out))
        assert shared.read_bytes() == alone.read_bytes()
    assert not list(tmp_path.glob("*.part-*"))
    assert (
        json.loads(out.read_text())["overall"]["num_items"]
        == len(alone.read_text().splitlines()) - 1
    )


def test_the_report_is_a_receipt(
    model: vlm.Model, model_folder: Path, data: Path, benchmark: BenchmarkConfig, tmp_path: Path
) -> None:
    out, five = tmp_path / "r.json", EvalConfig(limit=5)
    report = evaluate(model, benchmark, data, out, five, majority_from=data).report
    weights = model_folder / "model.safetensors"
    assert report.run.model.weights_sha256 == {weights.name: file_sha256(weights)}
    assert (report.run.model.seed, report.run.model.commit) == (5, "c0ffee")
    assert report.run.data.limit == report.overall.num_items == report.run.data.num_items == 5
    assert report.run.majority_from is not None and report.run.majority_from.limit is None
    assert report.run.majority_from.num_items > 5
    assert "user<|end_header_id|>\n\n<|image|>" in report.run.prompt
    assert report.run.benchmark["decoding"]["max_tokens"] == 4
    assert report.run.preprocessing["tile_size_px"] == 24
    assert "torch" in report.run.versions and report.run.dtype == "float32"
    assert json.loads(out.read_text()) == report.model_dump(mode="json")


def test_the_data_hash_is_of_words_and_of_pictures(
    run: Run, model: vlm.Model, data: Path, benchmark: BenchmarkConfig, tmp_path: Path
) -> None:
    hashes = {run("first").report.run.data.sha256, run("second").report.run.data.sha256}
    assert len(hashes) == 1
    hashes.add(run("fewer", limit=5).report.run.data.sha256)
    turned = tmp_path / "turned"
    samples = []
    for raw in read_folder(data):
        samples.append(replace(raw, images=[flipped(image) for image in raw.images]))
    pack(samples, turned)
    other = evaluate(model, benchmark, turned, tmp_path / "turned.json")
    hashes.add(other.report.run.data.sha256)
    assert len(hashes) == 3


def flipped(png: bytes) -> bytes:
    content = BytesIO()
    Image.open(BytesIO(png)).transpose(Image.Transpose.ROTATE_180).save(content, "PNG")
    return content.getvalue()


def test_weights_that_changed_are_hashed_anew(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    first = model_facts(folder).weights_sha256
    assert model_facts(folder).weights_sha256 == first
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    changed = model_facts(folder).weights_sha256
    assert changed == {path.name: file_sha256(path)} != first


def test_captions_alone_are_no_questions(
    model: vlm.Model, benchmark: BenchmarkConfig, tmp_path: Path
) -> None:
    write_scenes(tmp_path / "captions", 2, 0, SceneConfig(tile_size_px=24), "captions")
    with pytest.raises(UserError, match="holds no item of shards"):
        evaluate(model, benchmark, tmp_path / "captions", tmp_path / "r.json")


def test_the_command_prints_a_table_and_writes_the_files(
    model_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(model_folder), "--data", str(data), "--limit", "5"]
    assert cli.main([*arguments, "decoding.max_tokens=2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "blind" in printed and "majority" in printed
    out = model_folder / "eval" / "test.json"
    content = json.loads(out.read_text())
    assert content["headline"] == "accuracy" and content["overall"]["num_items"] == 5
    assert set(content["overall"]["figures"]) == {"model", "blind", "majority"}
    settings, predictions = read_predictions(predictions_path(out))
    assert len(predictions) == 5 and settings["benchmark"]["decoding"]["max_tokens"] == 2
    assert out.with_suffix(".md").read_text().startswith("# ")


def test_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "list"]) == 0
    assert "packed questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"--data": "nowhere"}, "nowhere"),
        ({"--out": "report.txt"}, "report.txt"),
        ({"--out": "/dev/null/report.json"}, "/dev/null/report.json"),
        ({"--majority-from": "nowhere-else"}, "nowhere-else"),
        ({"--limit": "0"}, "--limit"),
        ({"MODEL": "no-model"}, "no-model"),
        ({"--benchmark": "no-benchmark"}, "no-benchmark"),
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


def test_a_transformers_folder_is_measured_too(
    mllama_source: Path, data: Path, benchmark: BenchmarkConfig, tmp_path: Path
) -> None:
    model = vlm.load(mllama_source, device="cpu", dtype="float32")
    config = EvalConfig(limit=3)
    report = evaluate(model, benchmark, data, tmp_path / "r.json", config).report
    facts = report.run.model
    assert (facts.stage, facts.seed, facts.commit) == ("mllama", None, None)
    assert facts.weights_sha256 == {
        "model.safetensors": file_sha256(mllama_source / "model.safetensors")
    }
