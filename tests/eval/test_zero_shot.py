"""Zero-shot classification and retrieval by two towers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import picture_benchmarks as published
import pytest
import torch
from torch import Tensor

from encoders.config import TextTowerConfig
from encoders.text import build_text_tower
from eval.benchmark import BenchmarkConfig, benchmark_names, find_benchmark
from eval.items import Answer, Item
from eval.metrics.table import find_metric
from eval.run import EvalConfig
from eval.scoring import read_answers, score
from eval.zero_shot import NUM_NAMED, TASKS, ZeroShot, for_towers
from eval.zero_shot_run import evaluate_zero_shot
from vlm import cli
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.contrastive import ContrastiveHead, TwoTowers
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder

ENCODER_BENCHMARKS = [n for n in benchmark_names() if find_benchmark(n).ask in TASKS]
TOWER = TextTowerConfig(
    vocab_size=300, max_tokens=32, hidden_size=16, num_layers=1, num_heads=2, embedding_size=12
)


@pytest.fixture(scope="session")
def encoder_folder(
    tiny_config: VLMConfig, processor: Processor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an encoder stage, untrained."""
    torch.manual_seed(0)
    tokenizer = processor.tokenizer
    text_tower = build_text_tower(TOWER, tokenizer.pad_id, tokenizer.eot_id)
    # As they are born, texts hardly differ.
    text_tower.token_embedding.weight.data.normal_()
    components = {
        "encoder": VisionLanguageModel(tiny_config, tokenizer.image_id).encoder,
        "text_tower": text_tower,
        "contrastive_head": ContrastiveHead(
            tiny_config.vision.output_size, TOWER.embedding_size, sigmoid=True
        ),
    }
    described = FolderConfig(
        format=FORMAT,
        stage="encoder",
        components=tuple(components),
        model=tiny_config,
        text_tower=TOWER,
    )
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    provenance = {"stage": "encoder", "seed": 0, "commit": "c0ffee"}
    save_folder(folder, described, components, processor, provenance)
    return folder


@pytest.fixture(scope="session")
def towers(encoder_folder: Path) -> ZeroShot:
    return ZeroShot.load(encoder_folder, "cpu", batch_size=3)


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven classes of rendered scenes, two pictures each."""
    folder = tmp_path_factory.mktemp("classes")
    for label in range(7):
        for number in range(2):
            published.write_picture(
                folder / f"thing_{label}" / f"{number}.png", 10 * label + number
            )
    return folder


class AsOpenClip:
    """The same towers behind open_clip's face."""

    def __init__(self, towers: ZeroShot) -> None:
        self.towers = towers

    def tokenize(self, texts: list[str]) -> Tensor:
        tokenizer = self.towers.processor.tokenizer
        rows = [[*ids, tokenizer.eot_id] for ids in tokenizer.encode_batch(texts)]
        width = max(map(len, rows))
        return torch.tensor([row + [tokenizer.pad_id] * (width - len(row)) for row in rows])

    def encode_text(self, ids: Tensor, normalize: bool) -> Tensor:
        assert normalize
        return self.towers.towers.embed_texts(ids)


def test_classification_equals_open_clips(towers: ZeroShot, classes: Path) -> None:
    benchmark = find_benchmark("folder_classification")
    items = list(benchmark.items(classes))
    hashes: list[str] = []
    images = towers._embed_pictures(items, hashes)
    theirs = AsOpenClip(towers)
    names = items[0].choices
    templates = [template.replace("{class}", "{}") for template in benchmark.templates]
    classifier = open_clip.build_zero_shot_classifier(theirs, theirs.tokenize, names, templates)
    ours = towers.class_embeddings(names, benchmark.templates)
    # Unit vectors; batches of other widths sum in another order.
    torch.testing.assert_close(ours.T, classifier, rtol=0, atol=2e-6)
    labels = torch.tensor([item.correct[0] for item in items])
    # open_clip_train.zero_shot, whose own function does not run under today's numpy.
    best = (100.0 * images @ classifier).topk(5, dim=1).indices
    top1, top5 = ((best[:, :k] == labels.unsqueeze(1)).any(1).float().mean().item() for k in (1, 5))
    predictions = towers.predict(benchmark, items)
    found = score(benchmark, items, read_answers(benchmark, items, predictions)).values()
    assert found == pytest.approx({"top-1": top1, "top-5": top5})
    assert 0 < top1 < top5 < 1  # otherwise the comparison says little
    assert all(len(p.text.split("\n")) == NUM_NAMED for p in predictions)


def test_an_ensemble_is_the_normalised_mean_of_unit_embeddings(towers: ZeroShot) -> None:
    templates = ["a {class}.", "the large {class}"]
    (found,) = towers.class_embeddings(["circle"], templates)
    each = towers.embed_texts(["a circle.", "the large circle"])
    torch.testing.assert_close(each.norm(dim=1), torch.ones(2))
    mean = each.mean(dim=0)
    torch.testing.assert_close(found, mean / mean.norm())


def retrieval(tmp_path: Path, num: int = 6) -> tuple[BenchmarkConfig, list[Item]]:
    """Rendered scenes with three captions each."""
    for seed in range(num):
        published.write_picture(tmp_path / f"images/{seed}.png", seed)
    rows = [
        {"image": f"{n}.png", "captions": [f"{published.words(n)} {k}" for k in range(3)]}
        for n in range(num)
    ]
    published.write_lines(tmp_path / "captions.jsonl", rows)
    benchmark = find_benchmark("flickr8k_retrieval", ("files.captions=captions.jsonl",))
    return benchmark, list(benchmark.items(tmp_path))


def test_retrieval_is_what_sorting_all_similarities_gives(towers: ZeroShot, tmp_path: Path) -> None:
    benchmark, items = retrieval(tmp_path)
    predictions = towers.predict(benchmark, items)
    measured = score(benchmark, items, read_answers(benchmark, items, predictions))
    hashes: list[str] = []
    images = towers._embed_pictures(items, hashes).numpy()
    texts = towers.embed_texts([text for item in items for text in item.answers]).numpy()
    similarity = images @ texts.T  # (6, 18)
    owner = np.repeat(np.arange(6), 3)
    expected = {}
    for k in (1, 5, 10):
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        expected[f"image to text R@{k}"] = np.mean((owner[best] == np.arange(6)[:, None]).any(1))
    for k in (1, 5, 10):
        best = np.argsort(-similarity.T, axis=1, kind="stable")[:, :k]
        expected[f"text to image R@{k}"] = np.mean((best == owner[:, None]).any(1))
    assert measured.values() == pytest.approx(expected)
    assert 0 < expected["text to image R@1"] < expected["text to image R@5"] < 1


def test_recall_counts_pictures_and_captions_and_resamples_pictures() -> None:
    items = [Item(id=str(n), question="", answers=("a",) * n) for n in (1, 3)]
    texts = ("finds a caption at 1; found by its captions at 6", "2; 1 1 11")
    measured = find_metric("retrieval")(items, [Answer(text, text) for text in texts])
    assert measured.values() == pytest.approx(
        {
            "image to text R@1": 1 / 2,
            "image to text R@5": 1.0,
            "image to text R@10": 1.0,
            "text to image R@1": 2 / 4,
            "text to image R@5": 2 / 4,
            "text to image R@10": 3 / 4,
        }
    )
    assert measured.values(np.array([1]))["text to image R@1"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="needed: the place of a caption, and 3 of the picture"):
        find_metric("retrieval")(items[1:], [Answer("1; 2", "")])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_changes_no_prediction(
    batch_size: int, towers: ZeroShot, classes: Path, tmp_path: Path
) -> None:
    benchmark, items = retrieval(tmp_path)
    assert replace(towers, batch_size=batch_size).predict(benchmark, items) == towers.predict(
        benchmark, items
    )
    benchmark = find_benchmark("folder_classification")
    items = list(benchmark.items(classes))
    assert replace(towers, batch_size=batch_size).predict(benchmark, items) == towers.predict(
        benchmark, items
    )


@pytest.mark.parametrize("name", ENCODER_BENCHMARKS)
def test_every_benchmark_of_the_encoder_stage_runs_to_its_report(
    name: str, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out.json"
    data.mkdir()
    published.BENCHMARK_WRITERS[name](data)
    command = ["eval", str(encoder_folder), "--benchmark", name, "--data", str(data)]
    assert cli.main([*command, "--out", str(out), "--device", "cpu"]) == 0, capsys.readouterr().err
    report = json.loads(out.read_text())
    figures = report["overall"]["figures"]["model"]
    assert all(0 <= figure["value"] <= 1 for figure in figures.values())
    assert report["run"]["model"]["stage"] == "encoder"
    assert report["run"]["data"]["num_items"] == report["overall"]["num_items"] >= 2
    assert "prompt" not in out.with_suffix(".md").read_text()
    assert out.with_suffix(".html").is_file()


def test_finished_predictions_are_not_made_again(
    towers: ZeroShot, classes: Path, tmp_path: Path
) -> None:
    benchmark = find_benchmark("folder_classification")
    first = evaluate_zero_shot(towers, benchmark, classes, tmp_path / "a.json")
    kept = (tmp_path / "a.predictions.jsonl").read_bytes()
    parts = towers.towers
    blind = TwoTowers(torch.nn.Module(), parts.text_tower, parts.head)  # sees nothing and raises
    empty = replace(towers, towers=blind)
    again = evaluate_zero_shot(empty, benchmark, classes, tmp_path / "a.json")
    assert again.scored.values() == first.scored.values()
    assert (tmp_path / "a.predictions.jsonl").read_bytes() == kept
    with pytest.raises(NotImplementedError):
        evaluate_zero_shot(empty, benchmark, classes, tmp_path / "a.json", EvalConfig(fresh=True))


def test_long_texts_are_cut_to_what_the_tower_reads(towers: ZeroShot) -> None:
    long = "circle " * 100
    assert torch.equal(towers.embed_texts([long]), towers.embed_texts([long * 2]))


def test_what_cannot_be_done_is_said(
    towers: ZeroShot,
    encoder_folder: Path,
    model_folder: Path,
    classes: Path,
    tmp_path: Path,
    change_config: Callable[[Path, Path], Path],
) -> None:
    items = list(find_benchmark("folder_classification").items(classes))
    with pytest.raises(UserError, match="pope asks to generate, which needs a whole model"):
        towers.predict(find_benchmark("pope"), items)
    with pytest.raises(UserError, match=r"\(stage finetune\) has no text tower"):
        ZeroShot.load(model_folder, "cpu")
    with pytest.raises(UserError, match=r"holds encoder, text_tower .*no contrastive_head"):
        ZeroShot.load(change_config(encoder_folder, tmp_path / "old"), "cpu")
    with pytest.raises(UserError, match="items differ in their classes"):
        towers.predict(
            find_benchmark("folder_classification"), [items[0], replace(items[1], choices=("a",))]
        )
    (tmp_path / "none/empty").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no item of folder_classification"):
        evaluate_zero_shot(
            towers,
            find_benchmark("folder_classification"),
            tmp_path / "none",
            tmp_path / "out.json",
        )
    kinds = [find_benchmark(name) for name in ("cifar10", "pope")]
    with pytest.raises(UserError, match="cifar10 is for the folder of an encoder stage, pope for"):
        for_towers(kinds)
    assert for_towers(kinds[:1]) and not for_towers(kinds[1:])


@pytest.fixture
def change_config() -> Callable[[Path, Path], Path]:
    """A copy of an encoder's folder as it was before the head was kept."""
    from safetensors.torch import load_file, save_file

    from vlm.weights.folder import read_folder_config, write_json

    def change(folder: Path, out: Path) -> Path:
        import shutil

        shutil.copytree(folder, out)
        config = read_folder_config(folder)
        kept = {**config.model_dump(mode="json"), "components": ["encoder", "text_tower"]}
        write_json(out / "config.json", kept)
        tensors = load_file(out / "model.safetensors")
        save_file(
            {name: t for name, t in tensors.items() if not name.startswith("contrastive_head")},
            out / "model.safetensors",
        )
        return out

    return change


def test_templates_belong_to_classification() -> None:
    with pytest.raises(UserError, match="templates and ask: classify belong together"):
        find_benchmark("cifar10", ("templates=[]",))
    with pytest.raises(UserError, match=r"each needs \{class\}"):
        find_benchmark("cifar10", ("templates=[a photo]",))


def test_top_five_counts_the_right_class_among_five_names() -> None:
    names = tuple("abcdefg")
    items = [Item(id=str(n), question="", choices=names, correct=(n,)) for n in (0, 1, 6)]
    answers = [
        Answer("a\nb\nc\nd\ne", ""),
        Answer("a\nb\nc\nd\ne", ""),
        Answer("a\nb\nc\nd\ne", ""),
    ]
    found = find_metric("classification")(items, answers)
    assert found.values() == pytest.approx({"top-1": 1 / 3, "top-5": 2 / 3})
    assert list(found.item_scores) == [1, 0, 0]
