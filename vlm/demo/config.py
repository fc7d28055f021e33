"""What the demo offers, and its limits."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

MIB = 2**20


class DemoConfig(BaseModel):
    """Settings of `vlm demo`. Where `vlm serve` has the same, the limits are the same.

    host, port: where to listen. Port 0 is any free one.
    folder: pictures on this machine that the page may caption; None: uploaded ones only.
    max_tokens: of an answer, at most.
    max_images: of a conversation.
    max_image_bytes: of an uploaded picture.
    max_pixels: of a picture, by its header, before decoding.
    max_files: pictures captioned at once.
    running, queue: requests worked on at the same time, and those that may wait; more are refused.
    keep_s: seconds that uploaded pictures are kept; all go when the demo ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    folder: Path | None = None

    max_tokens: PositiveInt = 128
    max_images: PositiveInt = 16
    max_image_bytes: PositiveInt = 15 * MIB
    max_pixels: PositiveInt = 50_000_000
    max_files: PositiveInt = 1000

    running: PositiveInt = 4
    queue: PositiveInt = 64
    keep_s: PositiveInt = 3600
