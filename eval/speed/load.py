"""Our loader against plain webdataset, and against transformers' image processor in a DataLoader.

All three read the same shards in the shards' order, tokenise with the same tokenizer, and give
batches of equally many samples. webdataset gets our transforms: our tiling of what it has decoded
with `decode("pil")`, our rows, our collation. transformers' `MllamaImageProcessor` gets what
webdataset has decoded, a batch at a time, as its own users do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers.models.mllama.image_processing_mllama import MllamaImageProcessor

from data.collate import ChatBatch, collate_chats
from data.config import DataConfig
from data.encode import ChatEncoder, ChatRows
from data.loader import Loader
from data.pack import Manifest
from data.shards import ShardSet, read_folder
from encoders.config import VisionConfig
from encoders.tiling import TiledImage, tile_draft
from eval.speed.harness import Row, rate_row, time_in_turn
from vlm.chat.processor import Processor
from vlm.errors import UserError

BATCH_SAMPLES = 8
MAX_TOKENS = 4096  # longer than any caption: both sides load every sample
VOCAB_SIZE = 1000
# Of 255 steps: 2 for another resizing kernel; on average 1.5 for JPEG's reduced scales, whose
# pixels are means over squares. A picture that lies half a pixel elsewhere is off by more.
MOST_STEPS, MEAN_STEPS = 2, 1.5
POOL_BATCHES = 2
CHECKED_BATCHES = 2 * POOL_BATCHES  # whole pools: a pool is sorted by length


@dataclass(frozen=True)
class TransformersBatch:
    """What transformers' Mllama reads.

    inputs: pixel_values (B, 1, max_num_tiles, 3, px, px) float32, and what says where tiles are.
    input_ids: (B, S) int64.
    """

    keys: tuple[str, ...]
    inputs: dict[str, Any]
    input_ids: Tensor


@dataclass(frozen=True)
class Batches:
    """What is loaded, and how: the same for every side."""

    folder: Path
    processor: Processor
    num_workers: int

    @classmethod
    def of(cls, folder: Path, tile_size_px: int, max_num_tiles: int, num_workers: int) -> "Batches":
        """Read the shards once, for a tokenizer trained on their texts.

        Raises:
            UserError: they differ from their manifest, or a sample has not exactly one picture.
        """
        texts: list[str] = []
        for raw in read_folder(folder):
            if len(raw.images) != 1:
                raise UserError(
                    f"{folder}: {raw.key} has {len(raw.images)} pictures; samples of one picture "
                    "each are needed, since transformers pads every sample to as many as any has"
                )
            texts += [message.text for message in raw.sample.messages]
        processor = Processor.train(texts, _vision(tile_size_px, max_num_tiles), VOCAB_SIZE)
        return cls(folder, processor, num_workers)

    def ours(self, draft: bool = True) -> Iterator[ChatBatch]:
        """Our loader's batches, of one epoch."""
        return self.loader(draft).one_epoch()

    def loader(self, draft: bool = True, shuffle: bool = False) -> Loader[ChatRows, ChatBatch]:
        """Our loader."""
        config = DataConfig(
            train=(str(self.folder),),
            batch_samples=BATCH_SAMPLES,
            max_tokens=MAX_TOKENS,
            pool_batches=POOL_BATCHES,
            num_workers=self.num_workers,
            draft=draft,
        )
        encode = ChatEncoder(self.processor, config, "assistant")
        sources = [ShardSet.open(self.folder)]
        return Loader(sources, config, encode, self._collate(), seed=0, shuffle=shuffle)

    def webdataset(self) -> Iterator[ChatBatch]:
        """webdataset's batches: `decode("pil")`, then our transforms."""
        samples = self._decoded().map(partial(_our_rows, self.processor))
        return iter(self._loader(samples.batched(BATCH_SAMPLES, collation_fn=self._collate())))

    def transformers(self) -> Iterator["TransformersBatch"]:
        """transformers' batches: `decode("pil")`, then its image processor."""
        vision = self.processor.vision
        images = MllamaImageProcessor(
            size={"height": vision.tile_size_px, "width": vision.tile_size_px},
            max_image_tiles=vision.max_num_tiles,
        )
        collate = partial(_transformers_batch, self.processor, images)
        return iter(self._loader(self._decoded().batched(BATCH_SAMPLES, collation_fn=collate)))

    def _collate(self) -> Any:
        return partial(collate_chats, pad_id=self.processor.tokenizer.pad_id)

    def _decoded(self) -> Any:
        shards = [str(self.folder / entry.name) for entry in Manifest.read(self.folder).shards]
        # With more workers than shards some workers have none; that is no error here.
        dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        return dataset.decode("pil")

    def _loader(self, dataset: Any) -> DataLoader[Any]:
        workers = self.num_workers
        return DataLoader(
            dataset, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None
        )

    def check(self) -> str:
        """Say in one line how closely our drafts agree with what webdataset decodes in full.

        Looks at the first samples, which every side loads in the same order up to sorting.

        Raises:
            RuntimeError: another sample, text or canvas, or pixels too far apart.
        """
        alone = replace(self, num_workers=0)
        drafts, exact = _by_key(alone.ours()), _by_key(alone.ours(draft=False))
        plain = _by_key(alone.webdataset())
        if not drafts.keys() == exact.keys() == plain.keys():
            raise RuntimeError("the sides load different samples")
        total = pixels = 0
        for key, full in plain.items():
            for ours in (drafts[key], exact[key]):
                if ours.canvas != full.canvas or not torch.equal(ours.input_ids, full.input_ids):
                    raise RuntimeError(f"the sides give different texts or canvases for {key}")
            if (steps := int((exact[key].tiles - full.tiles).abs().max())) > MOST_STEPS:
                raise RuntimeError(f"our undrafted pixels are {steps} of 255 steps off in {key}")
            total += int((drafts[key].tiles - full.tiles).abs().sum())
            pixels += full.tiles.numel()
        mean = total / pixels
        if mean > MEAN_STEPS:
            raise RuntimeError(f"drafts are {mean:.2f} of 255 steps off, allowed: {MEAN_STEPS}")
        return f"{self.folder.name}: drafts are {mean:.3f} of 255 steps off (allowed: {MEAN_STEPS})"


def compare_loaders(
    folder: Path, tile_size_px: int, max_num_tiles: int, num_workers: int, repeats: int
) -> tuple[list[Row], str]:
    """Measure an epoch of each route over a folder of shards.

    Returns:
        a row for each peer, in samples per second, and a line that says how closely they agree.
    Raises:
        UserError: the shards are unusable, or a sample has not exactly one picture.
    """
    batches = Batches.of(folder, tile_size_px, max_num_tiles, num_workers)
    agreement = batches.check()
    num_samples = Manifest.read(folder).num_samples
    peers: dict[str, Callable[[], Iterator[Any]]] = {
        "webdataset": batches.webdataset,
        "transformers": batches.transformers,
    }
    rows = []
    for name, peer in peers.items():
        seconds = time_in_turn(
            partial(_drain, batches.ours, num_samples),
            partial(_drain, peer, num_samples),
            torch.device("cpu"),
            repeats,
        )
        setting = f"{folder.name} {name} {tile_size_px} px, workers {num_workers}"
        rows.append(rate_row("load", setting, num_samples, *seconds, unit="samples/s"))
    return rows, agreement


@dataclass(frozen=True)
class _Loaded:
    """A sample as it comes out of a loader; tiles are int16, for differences."""

    input_ids: Tensor
    canvas: int
    tiles: Tensor


def _by_key(batches: Iterator[ChatBatch]) -> dict[str, _Loaded]:
    loaded = {}
    for batch in islice(batches, CHECKED_BATCHES):
        images = batch.inputs.images
        assert images is not None and images.pixels is not None
        tiles = torch.split(images.pixels.to(torch.int16), images.num_tiles.tolist())
        for row, key in enumerate(batch.keys):
            input_ids = batch.inputs.input_ids[row, : int(batch.inputs.lengths[row])]
            loaded[key] = _Loaded(input_ids, int(images.aspect_ratio_ids[row]), tiles[row])
    return loaded


def _drain(route: Callable[[], Iterator[Any]], num_samples: int) -> None:
    loaded = sum(len(batch.keys) for batch in route())
    if loaded != num_samples:
        raise RuntimeError(f"{loaded} samples of {num_samples} were loaded")


def _picture(sample: Mapping[str, Any]) -> Image.Image:
    return next(value for value in sample.values() if isinstance(value, Image.Image))


def _our_rows(processor: Processor, sample: Mapping[str, Any]) -> ChatRows:
    picture, vision = _picture(sample), processor.vision
    full_size_px = picture.height, picture.width
    tiled = tile_draft(picture, full_size_px, vision.tile_size_px, vision.max_num_tiles)
    return ChatRows(sample["__key__"], (processor.encode(sample["json"]["messages"], [tiled]),))


def _transformers_batch(
    processor: Processor, images: Any, samples: Sequence[Mapping[str, Any]]
) -> TransformersBatch:
    unseen = TiledImage(torch.empty(0), 0, (0, 0))  # the processor below makes the pixels
    rows = [processor.encode(sample["json"]["messages"], [unseen]).input_ids for sample in samples]
    pixels = images([[_picture(sample)] for sample in samples], return_tensors="pt")
    pad_id = processor.tokenizer.pad_id
    return TransformersBatch(
        keys=tuple(sample["__key__"] for sample in samples),
        inputs=dict(pixels),
        input_ids=pad_sequence(rows, batch_first=True, padding_value=pad_id),
    )


def _vision(tile_size_px: int, max_num_tiles: int) -> VisionConfig:
    """The smallest encoder that reads such tiles: only its tiling is used."""
    return VisionConfig(
        tile_size_px=tile_size_px,
        patch_size_px=tile_size_px,
        max_num_tiles=max_num_tiles,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        num_local_layers=1,
        num_global_layers=0,
        intermediate_layers=(),
    )
