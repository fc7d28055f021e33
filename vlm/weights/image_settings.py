"""Settings of transformers' Mllama image processor: checked against ours, and written.

How a picture becomes tiles is fixed here (`encoders/tiling.py`): only the tile's size, the number
of tiles, mean and deviation vary. A folder whose settings ask for anything else is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encoders.config import VisionConfig
from vlm.chat.files import read_json_object
from vlm.errors import UserError

SETTINGS_FILE = "preprocessor_config.json"
# transformers 5 puts them under "image_processor" there, and then reads no other file.
PROCESSOR_FILE = "processor_config.json"
PROCESSOR_CLASS = "MllamaProcessor"
# One processor under three names: on tensors, and by Pillow.
IMAGE_PROCESSORS = ("MllamaImageProcessor", "MllamaImageProcessorFast", "MllamaImageProcessorPil")
BILINEAR = 2  # as Pillow counts its filters

# What our pixels follow; a setting that is not given has this value in transformers too.
FIXED_SETTINGS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": BILINEAR,
    "do_pad": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
STATISTICS = ("image_mean", "image_std")
# They say who reads the file, or how arrays are handed on.
INERT_SETTINGS = (
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "data_format",
    "input_data_format",
    "default_to_square",
    "disable_grouping",
    "device",
    "return_tensors",
)


def apply_image_settings(folder: Path, vision: VisionConfig) -> VisionConfig:
    """Return the encoder's configuration with the folder's mean and deviation.

    Raises:
        UserError: there are no settings, or some that we cannot follow or that contradict the
            encoder; all of them are named.
    """
    settings = _read(folder)
    problems = _problems(settings, vision)
    if problems:
        raise UserError(f"settings of the image processor: {'; '.join(problems)}")
    return vision.model_copy(update={name: _channels(settings[name]) for name in STATISTICS})


def image_settings(vision: VisionConfig) -> dict[str, Any]:
    """The content of `preprocessor_config.json`, which every version of transformers reads."""
    return {
        **FIXED_SETTINGS,
        **_needed(vision),
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "image_processor_type": IMAGE_PROCESSORS[0],
        "processor_class": PROCESSOR_CLASS,
    }


def _read(folder: Path) -> dict[str, Any]:
    settings = read_json_object(folder / PROCESSOR_FILE).get("image_processor")
    if not isinstance(settings, Mapping):
        settings = read_json_object(folder / SETTINGS_FILE)
    if not settings:
        raise UserError(
            f"there is neither a {SETTINGS_FILE} nor an image_processor in {PROCESSOR_FILE}: how "
            "pictures become pixels is not known; copy the file from where the model is from"
        )
    return dict(settings)


def _problems(settings: Mapping[str, Any], vision: VisionConfig) -> list[str]:
    fixed = {**FIXED_SETTINGS, **_needed(vision)}
    problems = [
        f"{name} is {settings[name]!r}, needed: {needed!r}"
        for name, needed in fixed.items()
        if name in settings and not _same(settings[name], needed)
    ]
    required = (*_needed(vision), *STATISTICS)
    problems += [f"{name} is missing" for name in required if name not in settings]
    problems += [
        f"{name} is {settings[name]!r}, needed: three numbers"
        for name in STATISTICS
        if name in settings and _channels(settings[name]) is None
    ]
    problems += [
        f"{name} is {value!r}, a setting that is not followed here"
        for name, value in settings.items()
        if name not in {*fixed, *STATISTICS, *INERT_SETTINGS} and value not in (None, False)
    ]
    kind = settings.get("image_processor_type", IMAGE_PROCESSORS[0])
    if kind not in IMAGE_PROCESSORS:
        problems.append(f"image_processor_type is {kind!r}, needed: {IMAGE_PROCESSORS[0]!r}")
    return problems


def _needed(vision: VisionConfig) -> dict[str, Any]:
    """What the settings must be for the encoder that the folder describes."""
    return {
        "size": {"height": vision.tile_size_px, "width": vision.tile_size_px},
        "max_image_tiles": vision.max_num_tiles,
    }


def _same(value: Any, needed: Any) -> bool:
    if isinstance(needed, float):  # files have it with 15 or 17 digits
        return isinstance(value, int | float) and abs(value - needed) < 1e-9
    return type(value) is type(needed) and bool(value == needed)


def _channels(value: Any) -> tuple[float, float, float] | None:
    """Three numbers, or one for all three channels; else None."""
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or any(type(channel) not in (int, float) for channel in values):
        return None
    return float(values[0]), float(values[1]), float(values[2])
