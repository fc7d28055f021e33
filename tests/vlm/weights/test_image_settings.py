"""Settings of transformers' image processor: both layouts, and nothing that we do not follow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MllamaImageProcessor, MllamaProcessor

from encoders.config import VisionConfig
from encoders.tiling import tile_picture
from vlm.errors import UserError
from vlm.weights.folder import read_folder_config
from vlm.weights.image_settings import apply_image_settings, image_settings

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture
def vision(tiny_config: Any) -> VisionConfig:
    found: VisionConfig = tiny_config.vision
    return found.model_copy(update={"image_mean": MEAN, "image_std": STD})


def write(folder: Path, settings: dict[str, Any], **update: Any) -> Path:
    content = {k: v for k, v in {**settings, **update}.items() if v != "left out"}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def test_what_is_written_is_read_back(
    tmp_path: Path, vision: VisionConfig, tiny_config: Any
) -> None:
    write(tmp_path, image_settings(vision))
    assert apply_image_settings(tmp_path, tiny_config.vision) == vision


def test_transformers_reads_what_is_written_and_makes_the_same_pixels(
    tmp_path: Path, vision: VisionConfig, picture: Callable[..., Image.Image]
) -> None:
    write(tmp_path, image_settings(vision))
    processor = MllamaImageProcessor.from_pretrained(tmp_path)
    image = picture(1, 16, 40)  # three tiles, one above the other; 40 of 48 rows filled
    theirs = processor(image, return_tensors="np")
    tiled = tile_picture(image, vision.tile_size_px, vision.max_num_tiles)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    ours = ((tiled.tiles / 255 - mean) / std).numpy()
    assert theirs["aspect_ratio_ids"].tolist() == [[tiled.aspect_ratio_id]]
    # Nothing is resized here, so only the order of float32 operations differs: values reach 3.
    np.testing.assert_allclose(theirs["pixel_values"][0, 0, : len(ours)], ours, atol=1e-5)


@pytest.mark.parametrize("layout", ["old", "new", "both"])
def test_both_layouts_are_read_and_the_new_one_wins(mllama_folder: Path, layout: str) -> None:
    processor = MllamaProcessor.from_pretrained(mllama_folder)
    mean = list(processor.image_processor.image_mean)
    if layout != "new":
        processor.image_processor.image_mean = [0.1, 0.1, 0.1]
        processor.image_processor.save_pretrained(mllama_folder)
    if layout == "old":
        (mllama_folder / "processor_config.json").write_text(
            json.dumps({"processor_class": "MllamaProcessor"})
        )
    expected = [0.1, 0.1, 0.1] if layout == "old" else mean
    assert list(read_folder_config(mllama_folder).model.vision.image_mean) == expected


@pytest.mark.parametrize(
    ("update", "complaint"),
    [
        ({"do_resize": False}, "do_resize is False, needed: True"),
        ({"do_pad": False}, "do_pad is False"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"do_convert_rgb": False}, "do_convert_rgb is False"),
        ({"resample": 3}, "resample is 3, needed: 2"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"size": {"height": 16, "width": 32}}, "size is .*'width': 32.*needed: .*'width': 16"),
        ({"size": {"shortest_edge": 16}}, "size is .*shortest_edge"),
        ({"size": "left out"}, "size is missing"),
        ({"max_image_tiles": 3}, "max_image_tiles is 3, needed: 4"),
        ({"image_mean": "left out"}, "image_mean is missing"),
        ({"image_std": [0.5, 0.5]}, r"image_std is \[0.5, 0.5\], needed: three numbers"),
        ({"do_center_crop": True, "crop_size": 9}, "do_center_crop is True.*; crop_size is 9"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is 'CLIP"),
        ({"auto_map": {"AutoImageProcessor": "code.Mine"}}, "auto_map is .*not followed"),
    ],
)
def test_what_we_cannot_follow_is_refused_by_name(
    tmp_path: Path, vision: VisionConfig, update: dict[str, Any], complaint: str
) -> None:
    write(tmp_path, image_settings(vision), **update)
    with pytest.raises(UserError, match=complaint):
        apply_image_settings(tmp_path, vision)


def test_settings_that_change_no_pixel_are_accepted(tmp_path: Path, vision: VisionConfig) -> None:
    harmless = {
        "do_center_crop": None,
        "crop_size": None,
        "data_format": "channels_first",
        "image_processor_type": "MllamaImageProcessorFast",
        "do_convert_rgb": "left out",
        "rescale_factor": 0.00392156862745098,
    }
    write(tmp_path, image_settings(vision), **harmless)
    assert apply_image_settings(tmp_path, vision) == vision
