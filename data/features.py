"""What a frozen encoder makes of pictures, kept in shards in their place.

Axes: `T` tiles of a picture, `N` tokens of a tile, `D` width of the encoder's output.

`KEY.0.safetensors` stands where `KEY.0.jpg` would: `features` (T, N, D), bfloat16 or float32, and
`aspect_ratio_id` () int64.
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save

from encoders.tiling import supported_canvases
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.inputs import EncodedImage

EXTENSION = "safetensors"
FeatureDtype = Literal["bfloat16", "float32"]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class FeatureRecord(BaseModel):
    """What made a folder's features.

    encoder_sha256: of the encoder's weights (vlm/weights/fingerprint.py).
    vision: its configuration, tiling among it.
    draft: whether pictures were read as `DataConfig.draft` says.
    dtype: what the features are kept in.
    source_sha256: fingerprint of the shards that had the pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    vision: dict[str, Any]
    draft: bool
    dtype: FeatureDtype
    source_sha256: str


def features_bytes(image: EncodedImage) -> bytes:
    """An encoded picture as a file; equal ones give equal bytes."""
    canvas = torch.tensor(image.aspect_ratio_id)
    return save({"features": image.features.contiguous().cpu(), "aspect_ratio_id": canvas})


def read_features(content: bytes, processor: Processor) -> EncodedImage:
    """Read what `features_bytes` wrote.

    Args:
        processor: of the model that reads; its encoder says what the shape must be.
    Raises:
        UserError: it is damaged, or of another shape or dtype.
    """
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"features cannot be read: {error}") from None
    vision = processor.vision
    canvases = supported_canvases(vision.max_num_tiles)
    features, canvas = tensors.get("features"), tensors.get("aspect_ratio_id")
    if features is None or canvas is None or canvas.numel() != 1:
        raise UserError(f"features have {sorted(tensors)}, needed: aspect_ratio_id, features")
    aspect_ratio_id = int(canvas)
    if not 1 <= aspect_ratio_id <= len(canvases):
        raise UserError(f"features have aspect_ratio_id {aspect_ratio_id} of {len(canvases)}")
    rows, columns = canvases[aspect_ratio_id - 1]
    expected = (rows * columns, vision.num_tokens, vision.output_size)
    if tuple(features.shape) != expected or features.dtype not in DTYPES.values():
        raise UserError(
            f"features are {features.dtype} {list(features.shape)}, needed: bfloat16 or float32 "
            f"{list(expected)}"
        )
    return EncodedImage(features, aspect_ratio_id)
