"""Features in place of pictures: what they are, that they train alike, who refuses them."""

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from data.check import check_folder
from data.features import features_bytes, read_features
from data.pack import Manifest, pack
from data.schema import RawSample, Reject, Sample
from data.shards import ShardSet, read_folder
from encoders.vit import VisionEncoder
from training.config import TrainConfig
from training.dry_run import describe_run, make_plan
from training.features import FeatureSettings, write_features
from training.flops import StepFlops
from training.metrics import METRICS_FILE, read_metrics
from training.run import train_stage
from training.setup import build_setup
from training.stages import freeze, parts_of
from vlm import cli
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.inputs import EncodedImage
from vlm.weights.fingerprint import weights_sha256
from vlm.weights.folder import load_component, read_component, read_folder_config

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
# Of no picture, of one tile, of two and four.
SIZES = ([], [(16, 16)], [(40, 16), (30, 30)], [(64, 64)])


def chat(number: int, picture: Callable[..., Image.Image]) -> RawSample:
    sizes = SIZES[number % len(SIZES)]
    images = []
    for place, size in enumerate(sizes):
        buffer = io.BytesIO()
        picture(10 * number + place, *size).save(buffer, "PNG")
        images.append(buffer.getvalue())
    shown = [{"type": "image"} for _ in sizes]
    messages = []
    for turn in range(2):
        words = {"type": "text", "text": f"How many, {number}?"}
        messages += [
            {"role": "user", "content": [*(shown if turn == 0 else []), words]},
            {"role": "assistant", "content": [{"type": "text", "text": "red " * (turn + 1)}]},
        ]
    return RawSample(f"k{number}", Sample.parse({"messages": messages}), images)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., Image.Image]) -> Path:
    """Twelve chats of two turns, with no picture, one and two."""
    folder = tmp_path_factory.mktemp("mixed") / "shards"
    pack((chat(number, picture) for number in range(12)), folder, samples_per_shard=5)
    return folder


@pytest.fixture(scope="module")
def encoded(mixed: Path, parents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mixed` as features, in the sub-folders `float32` and `bfloat16`."""
    folder = tmp_path_factory.mktemp("encoded")
    for dtype in ("float32", "bfloat16"):
        settings = FeatureSettings(dtype, batch_tiles=5, samples_per_shard=5)
        write_features(parents / "encoder", str(mixed), folder / dtype, settings, CPU)
    return folder


@pytest.fixture
def align(stage_config: MakeConfig, tmp_path: Path) -> Callable[..., TrainConfig]:
    """`align(data, *more, name="out", **changes)`: three steps; the first is validated too."""

    def make(data: Path, /, *more: Path, name: str = "out", **changes: Any) -> TrainConfig:
        data_changes = {"train": [data, *more], "validation": [data], **changes.pop("data", {})}
        return stage_config("align", tmp_path / name, data=data_changes, **changes)

    return make


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / METRICS_FILE)]


def weights(run: Path) -> torch.Tensor:
    parts = [read_component(run, name) for name in ("projector", "decoder")]
    return torch.cat([part[name].flatten() for part in parts for name in sorted(part)])


@pytest.fixture(scope="module")
def processor_of(parents: Path) -> Processor:
    folder = parents / "encoder"
    return Processor.from_folder(folder, read_folder_config(folder).model.vision)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_what_the_encoder_makes_of_each_picture_alone(
    dtype: str, mixed: Path, encoded: Path, parents: Path, processor_of: Processor
) -> None:
    encoder = VisionEncoder(processor_of.vision).eval().requires_grad_(False)
    load_component(encoder, read_component(parents / "encoder", "encoder"), "encoder", parents)
    found = list(ShardSet.open(encoded / dtype, features=True).read_all())
    assert len(found) == 12
    for raw, source in zip(found, read_folder(mixed), strict=True):
        assert (raw.key, raw.sample, raw.has_features) == (source.key, source.sample, True)
        for content, picture in zip(raw.images, source.images, strict=True):
            image = read_features(content, processor_of)
            tiled = processor_of.tile_file(picture, draft=True)
            assert (image.num_tiles, image.aspect_ratio_id) == (
                tiled.num_tiles,
                tiled.aspect_ratio_id,
            )
            assert image.features.dtype == getattr(torch, dtype)
            counts = torch.tensor([tiled.num_tiles]), torch.tensor([tiled.aspect_ratio_id])
            expected = encoder(tiled.tiles, *counts)
            # Batches of other sizes sum in another order; bfloat16 rounds to 8 bits, half a step up
            # or down: a 256th of a number at most.
            near = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 2**-8}
            torch.testing.assert_close(image.features.float(), expected, **{"atol": 1e-5, **near})


def test_a_folder_of_features_says_what_made_it_and_is_made_alike_each_time(
    mixed: Path, encoded: Path, parents: Path, tmp_path: Path
) -> None:
    manifest, source = Manifest.read(encoded / "float32"), Manifest.read(mixed)
    record = manifest.features
    assert record is not None and record.draft and record.dtype == "float32"
    assert record.source_sha256 == source.sha256
    assert record.encoder_sha256 == weights_sha256(parents / "encoder", ("encoder",))
    assert (manifest.num_samples, manifest.num_images) == (12, source.num_images)
    assert len(manifest.shards) == 3
    for entry in manifest.shards:
        assert (encoded / "float32" / f"{entry.name.removesuffix('.tar')}.index.json").is_file()
    settings = FeatureSettings("float32", batch_tiles=5, samples_per_shard=5)
    # The whole model's folder has the same encoder.
    again = write_features(parents / "align", str(mixed), tmp_path / "again", settings, CPU)
    assert again == manifest
    with pytest.raises(UserError, match="is not empty"):
        write_features(parents / "align", str(mixed), tmp_path / "again", settings, CPU)


def test_a_manifest_of_pictures_is_what_it_would_be_without_features(mixed: Path) -> None:
    assert "features" not in json.loads((mixed / "manifest.json").read_text())


SETTINGS: list[dict[str, Any]] = [
    {"split_turns": False},
    {"split_turns": True},
    {"split_turns": False, "packing": True},
]


@pytest.mark.parametrize("data", SETTINGS, ids=["chats", "turns", "packed"])
def test_float32_features_train_as_pictures_do_and_the_encoder_never_runs(
    data: dict[str, Any],
    mixed: Path,
    encoded: Path,
    align: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_stage(align(mixed, name="pictures", data=data))
    with monkeypatch.context() as patch:
        patch.delattr(VisionEncoder, "forward")
        train_stage(align(encoded / "float32", name="features", data=data))
    expected, found = losses(tmp_path / "pictures"), losses(tmp_path / "features")
    # Pictures are encoded in batches of another size, so sums have another order.
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == 4
    apart = weights(tmp_path / "features") - weights(tmp_path / "pictures")
    assert apart.abs().max() < 1e-3  # Adam divides by gradients as small as their rounding
    kept = read_component(tmp_path / "features", "encoder")
    for name, tensor in read_component(tmp_path / "pictures", "encoder").items():
        assert torch.equal(tensor, kept[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bfloat16_features_give_the_loss_within_their_rounding(
    precision: str, mixed: Path, encoded: Path, align: MakeConfig, tmp_path: Path
) -> None:
    for name, data in (("pictures", mixed), ("features", encoded / "bfloat16")):
        train_stage(align(data, name=name, precision=precision))
    expected, found = losses(tmp_path / "pictures"), losses(tmp_path / "features")
    # A feature is off by a 256th at most, and closed gates let little of it through at first.
    assert found == pytest.approx(expected, rel=2e-3)
    assert found != expected or precision == "bf16"


def test_folders_without_pictures_go_with_features_and_others_do_not(
    mixed: Path, encoded: Path, align: MakeConfig, tmp_path: Path
) -> None:
    talks = tmp_path / "talks"
    pack([replace(raw, key=f"t{raw.key}") for raw in read_folder(mixed) if not raw.images], talks)
    batches = build_setup(align(encoded / "float32", talks)).train.batches()
    seen = {key for _ in range(6) for key in next(batches).keys}
    assert {key[0] for key in seen} == {"k", "t"}
    for train, validation in ((mixed, encoded / "float32"), (encoded / "float32", mixed)):
        message = f"{encoded / 'float32'} holds an encoder's features and {mixed} pictures"
        with pytest.raises(UserError, match=re.escape(message)):
            build_setup(align(train, data={"validation": [validation]}))


def test_features_of_another_encoder_are_refused_by_both_hashes(
    encoded: Path, parents: Path, align: MakeConfig, tmp_path: Path
) -> None:
    other = shutil.copytree(parents / "encoder", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.startswith("encoder."))
    tensors[name].view(-1)[0] += 1
    save_file(tensors, other / "model.safetensors")
    start = {"decoder": parents / "text", "encoder": other}
    with pytest.raises(UserError) as caught:
        build_setup(align(encoded / "float32", init_from=start))
    for folder in (parents / "encoder", other):
        assert weights_sha256(folder, ("encoder",)) in str(caught.value)
    # What else a folder holds does not matter.
    start["encoder"] = parents / "align"
    build_setup(align(encoded / "float32", init_from=start))


def test_features_of_other_tiles_or_pixels_are_refused(
    encoded: Path, align: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"drafts of pictures, and data\.draft is False"):
        build_setup(align(encoded / "float32", data={"draft": False}))
    copy = shutil.copytree(encoded / "float32", tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["features"]["vision"]["max_num_tiles"] = 2
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"model\.vision\.max_num_tiles is 4 here and 2 there"):
        build_setup(align(copy))


@pytest.mark.parametrize("stage", ["text", "encoder", "finetune"])
def test_only_align_takes_features(
    stage: Any, encoded: Path, stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config(stage, tmp_path / "out", data={"train": [encoded / "float32"]})
    with pytest.raises(UserError, match="only `vlm train align`"):
        build_setup(config)


def test_whoever_wants_pictures_refuses_features(encoded: Path, mixed: Path) -> None:
    for read in (check_folder, lambda folder: list(read_folder(folder))):
        with pytest.raises(UserError, match="what an encoder made of pictures, not the pictures"):
            read(encoded / "float32")


def test_members_must_be_what_the_manifest_says(encoded: Path, mixed: Path, tmp_path: Path) -> None:
    record = json.loads((encoded / "float32" / "manifest.json").read_text())["features"]
    for number, (source, features) in enumerate(((encoded / "float32", None), (mixed, record))):
        copy = shutil.copytree(source, tmp_path / str(number))
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["features"] = features
        (copy / "manifest.json").write_text(json.dumps(manifest))
        (found,) = ShardSet.open(copy, features=True).read([(0, 1)])
        assert isinstance(found, Reject) and "only KEY.json and KEY.0." in found.reason


TILE = torch.zeros(1, 5, 48)
BAD_FEATURES = {
    "not safetensors": b"\x80\x04pickle",
    "names": save({"pixels": TILE}),
    "canvas": features_bytes(EncodedImage(TILE, 9)),
    "tiles": features_bytes(EncodedImage(TILE, 2)),
    "width": features_bytes(EncodedImage(TILE[:, :, 1:], 1)),
    "dtype": features_bytes(EncodedImage(TILE.long(), 1)),
}


@pytest.mark.parametrize("content", BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_damaged_features_are_refused(content: bytes, processor: Processor) -> None:
    assert read_features(features_bytes(EncodedImage(TILE, 1)), processor).num_tiles == 1
    with pytest.raises(UserError, match="features"):
        read_features(content, processor)


def test_operations_leave_out_the_encoder_that_does_not_run(
    mixed: Path, encoded: Path, align: MakeConfig
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    setup = build_setup(align(encoded / "bfloat16"))
    freeze(setup.stage, parts_of(setup.modules))
    batch = next(setup.train.batches())
    with FlopCounterMode(display=False) as counter:
        setup.objective.loss(batch)
    # Products of no weight, which the formula leaves out, are below a thousandth.
    forward = StepFlops(setup.modules).of(batch).forward
    assert forward == pytest.approx(counter.get_total_flops(), rel=2e-3)
    plain, kept = make_plan(align(mixed)), make_plan(align(encoded / "bfloat16"))
    assert kept.flops.forward == forward < plain.flops.forward
    assert kept.memory.weights == plain.memory.weights and kept.memory.peak <= plain.memory.peak
    tiles = int(batch.inputs.images.num_tiles.sum())
    assert f"pictures in {tiles} tiles" in describe_run(align(encoded / "bfloat16"))


def test_the_command_says_what_it_wrote(
    mixed: Path, parents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["shards", "features", str(parents / "encoder"), str(mixed), str(out)]
    assert cli.main([*arguments, "--exact", "--device", "cpu"]) == 0
    assert f"{out}: samples 12, pictures 12, questions 24, shards 1 (" in capsys.readouterr().out
    record = Manifest.read(out).features
    assert record is not None and not record.draft and record.dtype == "bfloat16"
    assert cli.main(["shards", "features", str(parents / "text"), str(mixed), str(out / "x")]) == 2
    assert "no encoder" in capsys.readouterr().err
