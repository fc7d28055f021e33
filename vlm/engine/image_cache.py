"""Keys and values of images, kept for later requests that show the same pictures.

Axes: `L` tokens of an image, `H` key/value heads, `d` head width.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock

import torch

from encoders.tiling import TiledImage
from vlm.decoder.cache import KeyValues
from vlm.inputs import EncodedImage

Layers = Mapping[int, KeyValues]


def image_key(image: TiledImage | EncodedImage) -> str:
    """Return the SHA-256, in hexadecimal, of all that the model is given of a picture.

    These are the decoded tiles, not the file: one file may be decoded in several ways, and files
    that differ may hold one picture. Shape and canvas are hashed too, so that the same bytes cut
    in another way have another key.
    """
    if isinstance(image, EncodedImage):
        given, canvas = image.features, None
    else:
        given, canvas = image.tiles, image.canvas
    shape = f"{given.dtype} {tuple(given.shape)} {canvas} {image.aspect_ratio_id}\n"
    digest = hashlib.sha256(shape.encode())
    digest.update(given.contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ImageCache:
    """The images used last, by their keys, up to a number of bytes.

    What a running request reads stays alive with the request, also when it is dropped here.
    Thread-safe: engines of one network may share it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._images: OrderedDict[str, Layers] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: str) -> Layers | None:
        """The keys and values (1, H, L, d) of every cross-attention layer, or None."""
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def put(self, key: str, layers: Layers) -> None:
        """Keep an image, and drop those unused for longest until all fit."""
        size = _num_bytes(layers)
        with self._lock:
            if key in self._images or size > self.max_bytes:
                return
            self._images[key] = layers
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                _, dropped = self._images.popitem(last=False)
                self.num_bytes -= _num_bytes(dropped)


def _num_bytes(layers: Layers) -> int:
    return sum(kept.keys.nbytes + kept.values.nbytes for kept in layers.values())
