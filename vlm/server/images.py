"""The bytes of the images that a conversation names: data URIs, URLs, files of the folder."""

import base64
import binascii
import re

from vlm.server.config import ServerConfig
from vlm.server.errors import ApiError
from vlm.server.fetch import Fetcher, FetchError
from vlm.server.folder import FolderError, read_allowed_file

DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
MAX_HEAD_CHARS = 200


class ImageSource:
    """Gets images by their references, as the server's settings allow."""

    def __init__(self, config: ServerConfig, fetcher: Fetcher | None = None) -> None:
        self._folder = config.allow_image_folder
        self._max_bytes = config.max_image_bytes
        self._fetcher = fetcher
        if fetcher is None and config.allow_image_hosts:
            self._fetcher = Fetcher(
                config.allow_image_hosts,
                config.allow_image_networks,
                config.max_image_bytes,
                config.fetch_s,
            )

    async def fetch(self, url: str, param: str) -> bytes | None:
        """Return what a reference to another host names; None for one that needs no network.

        Raises:
            ApiError: not allowed, or not there.
        """
        if not url[:6].lower().startswith(("http:", "https:")):
            return None
        if self._fetcher is None:
            raise ApiError(
                400,
                f"{param}: this server fetches no image URLs; send the image as a data URI",
                param,
                "image_url_not_allowed",
            )
        try:
            return await self._fetcher.fetch(url)
        except FetchError as error:
            raise ApiError(400, f"{param}: {error}", param, "invalid_image_url") from error

    def read(self, url: str, param: str) -> bytes:
        """Return what a data URI holds, or a `file://` URL names; blocks.

        Raises:
            ApiError: malformed, not allowed, or not there.
        """
        if url[:5].lower() == "data:":
            return _decode_data_uri(url, param)
        if url[:5].lower() == "file:" and self._folder is not None:
            try:
                return read_allowed_file(url, self._folder, self._max_bytes)
            except (FolderError, ValueError) as error:
                reason = error if isinstance(error, FolderError) else "this is no URL"
                raise ApiError(400, f"{param}: {reason}", param, "invalid_image_url") from error
        raise ApiError(
            400,
            f"{param}: needed is a data URI, data:image/...;base64,...",
            param,
            "image_url_not_allowed",
        )


def _decode_data_uri(url: str, param: str) -> bytes:
    head = DATA_URI.match(url[:MAX_HEAD_CHARS])
    try:
        if head is None:
            raise ValueError("no data URI")
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400,
            f"{param}: this is no data URI in base64, data:image/...;base64,...",
            param,
            "invalid_image",
        ) from error
