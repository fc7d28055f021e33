"""What a server offers, and its limits."""

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from vlm.safety.config import SafetyConfig

MIB = 2**20

Host = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?)$")]


class ServerConfig(BaseModel):
    """Settings of `vlm serve`.

    host, port: where to listen. Port 0 is any free one.
    name: what the model is called in requests; None is the model folder's name.
    api_keys: one of them must come with every request but `/health`. None given: everybody is
        served.

    safety: a policy on what is asked and answered; None: no policy.

    max_context: tokens of a prompt and its answer; memory is set aside for so many in each slot.
        None is 8,192, or fewer where the model has fewer.
    image_cache_mb: what is kept of images for later questions about them, in MiB.
    slots: answers generated at the same time.
    queue: answers that may wait for a slot; more are told 429.
    default_max_tokens: of an answer whose request says nothing; `vlm ask` has the same.
    max_tokens: the longest answer; None is as long as the model's context allows.
    max_choices: the largest `n`.

    max_body_bytes: of a request.
    max_buffered_bytes: of all requests being received.
    max_text_chars: of a conversation, all messages together.
    max_images: of a conversation.
    max_image_bytes: of an image from a URL or a folder.
    max_pixels: of an image, by its header, before decoding.
    decode_threads: threads that decode images and encode prompts; as many as there are cores, up to
        eight.

    allow_image_hosts: names from which image URLs are fetched: `example.com`, `*.example.com`
        (what lies below it), or `*`. Nothing: none is.
    allow_image_networks: private networks in which such a host may lie, as 10.0.0.0/8. Public
        addresses always may, all others never.
    fetch_s: seconds for fetching an image, all in all.
    allow_image_folder: `file://` URLs below this folder are read.

    head_s: seconds for a request's head to arrive, and for a new connection to send one.
    body_s: seconds for its body.
    write_s: seconds in which a client must take what is written to it.
    keep_alive_s: seconds that a connection may be idle between requests.
    drain_s: seconds that answers in flight have after SIGTERM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    name: str | None = Field(default=None, min_length=1)
    api_keys: tuple[SecretStr, ...] = ()

    safety: SafetyConfig | None = None

    max_context: PositiveInt | None = None
    image_cache_mb: PositiveInt = 1024
    slots: PositiveInt = 8
    queue: NonNegativeInt = 64
    default_max_tokens: PositiveInt = 128
    max_tokens: PositiveInt | None = None
    max_choices: PositiveInt = 8

    max_body_bytes: PositiveInt = 20 * MIB
    max_buffered_bytes: PositiveInt = 256 * MIB
    max_text_chars: PositiveInt = 1_000_000
    max_images: PositiveInt = 16
    max_image_bytes: PositiveInt = 15 * MIB
    max_pixels: PositiveInt = 50_000_000
    decode_threads: PositiveInt = Field(default_factory=lambda: min(8, os.cpu_count() or 1))

    allow_image_hosts: tuple[Host, ...] = ()
    allow_image_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    fetch_s: PositiveFloat = 10.0
    allow_image_folder: Path | None = None

    head_s: PositiveFloat = 10.0
    body_s: PositiveFloat = 30.0
    write_s: PositiveFloat = 30.0
    keep_alive_s: PositiveInt = 75
    drain_s: PositiveFloat = 30.0

    @property
    def max_open(self) -> int:
        """Answers that may be running or waiting."""
        return self.slots + self.queue

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_choices > self.max_open:
            raise ValueError(
                f"max_choices is {self.max_choices}, more than slots and queue hold together: "
                f"{self.max_open}"
            )
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError("max_buffered_bytes is less than one request's max_body_bytes")
        if any(not key.get_secret_value().strip() for key in self.api_keys):
            raise ValueError("an API key is empty")
        return self
