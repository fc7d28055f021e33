"""Samples made ready to be written: read, decoded, shrunk if wanted; in processes of their own.

What leaves here has the order of what came in and depends on nothing else, so the number of worker
processes changes no byte of a shard.
"""

import hashlib
import io
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from re import ASCII
from re import compile as compile_pattern

from data.documents import Entry
from data.pictures import Pictures
from data.schema import RawSample, Reject
from vlm.errors import UserError
from vlm.images import ImageError, image_extension, read_image

CHUNK_SAMPLES = 16  # what a worker gets at a time
CHUNKS_AHEAD = 3  # for each worker, so that none waits and the memory stays bounded
MAX_KNOWN = 4096  # pictures whose fate is remembered
JPEG_QUALITY = 95
# Formats of photographs: what is shrunk of them becomes a JPEG, all else a PNG.
LOSSY = frozenset({"jpg", "webp", "avif", "jp2"})

# What webdataset keeps whole as the name of a sample; see `data.schema.sample_key`.
_KEY = compile_pattern(r"(?!__)[\w%~-][\w%~/-]*", ASCII)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sample that can be written.

    text: the sample's JSON.
    images: encoded pictures and their file extensions.
    names: of the pictures where they came from; a sample that came with its pictures has none.
    picture_hashes: of the pictures' bytes as they came.
    content_hash: of all that is shown and said, whatever the key.
    """

    key: str
    text: bytes
    num_turns: int
    images: list[tuple[bytes, str]]
    names: tuple[str, ...]
    picture_hashes: tuple[str, ...]
    content_hash: str


Item = Entry | RawSample | Prepared | Reject


def prepare_samples(
    items: Iterable[Item],
    pictures: Pictures | None,
    max_side_px: int | None = None,
    num_workers: int = 0,
) -> Iterator[Prepared | Reject]:
    """Yield each item as a sample that can be written, or why it cannot, in their order.

    What is prepared already stays as it is.

    Args:
        pictures: where those of the `Entry`s are.
        max_side_px: a picture with a longer side is shrunk to this and encoded anew; all others
            keep their bytes.
        num_workers: processes beside this one; 0 does the work here.
    Raises:
        UserError: a worker process died.
    """
    if num_workers == 0:
        yield from map(_Preparer(pictures, max_side_px), items)
        return
    context = get_context("spawn")  # a fork would inherit locks that other threads hold
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (pictures, max_side_px))
    try:
        yield from _through(pool, iter(items), num_workers * CHUNKS_AHEAD)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process of the pack died, perhaps for lack of memory: use fewer with "
            "--num-workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _through(
    pool: ProcessPoolExecutor, items: Iterator[Item], num_ahead: int
) -> Iterator[Prepared | Reject]:
    waiting: deque[Future[list[Prepared | Reject]]] = deque()
    while True:
        while len(waiting) < num_ahead and (chunk := list(islice(items, CHUNK_SAMPLES))):
            waiting.append(pool.submit(_prepare_chunk, chunk))
        if not waiting:
            return
        yield from waiting.popleft().result()


class _Preparer:
    """Prepares one item at a time; a picture that many samples show is decoded once."""

    def __init__(self, pictures: Pictures | None, max_side_px: int | None) -> None:
        self.pictures = pictures
        self.max_side_px = max_side_px
        self._known: dict[str, tuple[bytes | None, str] | ImageError] = {}

    def __call__(self, item: Item) -> Prepared | Reject:
        names: tuple[str, ...] = ()
        if isinstance(item, Entry):
            assert self.pictures is not None
            names = item.pictures
            item = item.read(self.pictures)
        if isinstance(item, Reject | Prepared):
            return item
        if not _KEY.fullmatch(item.key):
            return Reject(item.key, f"bad key: {item.key!r} has characters that sample_key encodes")
        if len(item.images) != item.sample.num_images:
            counts = f"{len(item.images)} for {item.sample.num_images} places in the messages"
            return Reject(item.key, f"number of pictures: {counts}")
        return self._prepare(item, names)

    def _prepare(self, item: RawSample, names: tuple[str, ...]) -> Prepared | Reject:
        images, hashes = [], []
        for index, content in enumerate(item.images):
            digest = hashlib.sha256(content).hexdigest()
            if digest not in self._known:
                if len(self._known) >= MAX_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[digest] = _fate(content, self.max_side_px)
            fate = self._known[digest]
            if isinstance(fate, ImageError):
                return Reject(item.key, f"bad picture: number {index}: {fate}")
            shrunk, extension = fate
            images.append((content if shrunk is None else shrunk, extension))
            hashes.append(digest)
        said = [message.model_dump_json() for message in item.sample.messages]
        content_hash = hashlib.sha256("\n".join([*hashes, *said]).encode()).hexdigest()
        text = item.sample.to_json().encode()
        num_turns = item.sample.num_turns
        return Prepared(item.key, text, num_turns, images, names, tuple(hashes), content_hash)


def _fate(content: bytes, max_side_px: int | None) -> tuple[bytes | None, str] | ImageError:
    """The extension of a picture, and its new bytes if it was shrunk; or why it is refused."""
    try:
        # Pillow warns of broken metadata in pictures that it reads all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = read_image(content)
            extension = image_extension(content)
    except ImageError as error:
        return error
    if max_side_px is None or max(image.size) <= max_side_px:
        return None, extension
    image.thumbnail((max_side_px, max_side_px))
    buffer = io.BytesIO()
    if extension in LOSSY:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue(), "jpg"
    image.save(buffer, "PNG")
    return buffer.getvalue(), "png"


# The preparer of a worker process: processes share nothing, and tasks carry samples only.
_worker: list[_Preparer] = []


def _start_worker(pictures: Pictures | None, max_side_px: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is for the process that writes
    _worker.append(_Preparer(pictures, max_side_px))


def _prepare_chunk(chunk: list[Item]) -> list[Prepared | Reject]:
    return [_worker[0](item) for item in chunk]
