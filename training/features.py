"""Features of a frozen encoder in place of pictures: made once, and checked by who reads them.

Axes: `T` tiles of several pictures, `N` tokens of a tile, `D` width of the encoder's output.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from data.features import DTYPES, EXTENSION, FeatureDtype, FeatureRecord, features_bytes
from data.pack import Manifest, PackSettings, Part, pack_parts
from data.prepare import Prepared
from data.schema import RawSample, Reject
from data.shards import ShardSet
from data.staging import require_new
from encoders.tiling import TiledImage
from encoders.vit import VisionEncoder
from training.config import TrainConfig
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.images import ImageError
from vlm.inputs import EncodedImage, stack_images
from vlm.weights.comparison import differences, listed
from vlm.weights.fingerprint import weights_sha256
from vlm.weights.folder import load_component, read_component, read_folder_config
from vlm.weights.tower_folders import is_tower_folder

CHUNK_SAMPLES = 16  # whose pictures are in memory at once

# A sample with its pictures cut into tiles, or why it has none.
Tiled = tuple[RawSample, list[TiledImage]] | Reject


@dataclass(frozen=True)
class FeatureSettings:
    """How features are made.

    dtype: what they are kept in.
    draft: see `DataConfig`; training must say the same.
    batch_tiles: that the encoder gets at once, unless a picture alone has more.
    """

    dtype: FeatureDtype = "bfloat16"
    draft: bool = True
    batch_tiles: int = 32
    samples_per_shard: int = 100


def write_features(
    model: Path,
    source: str,
    out: Path,
    settings: FeatureSettings,
    device: torch.device,
) -> Manifest:
    """Run a model's encoder once over every picture of a folder of shards.

    `out` gets shards with an index and a manifest, as `data.pack` writes them. On a GPU, bfloat16
    features are computed as a bf16 run computes them; all others in float32.

    Args:
        model: any model folder with an encoder.
        source: a folder of shards with pictures, by path or URL.
    Raises:
        UserError: one of the folders is of no use, or `out` holds something already.
    """
    require_new(out, resume=False)
    shards = ShardSet.open(source)
    if not any(shards.num_samples) or shards.num_images == 0:
        raise UserError(f"{source} shows no picture: train on it as it is")
    config = read_folder_config(model)
    tensors = read_component(model, "encoder")
    vision = config.model.vision
    try:
        with torch.device("meta"):
            encoder = VisionEncoder(vision)
    except ValueError as error:
        raise UserError(f"{model}: model.vision: {error}") from error
    encoder.to_empty(device=device)
    load_component(encoder, tensors, "encoder", model)
    maker = _Maker(encoder.eval(), Processor.from_folder(model, vision), settings, device)
    record = FeatureRecord(
        encoder_sha256=weights_sha256(model, ("encoder",)),
        vision=vision.model_dump(mode="json"),
        draft=settings.draft,
        dtype=settings.dtype,
        source_sha256=shards.fingerprint,
    )
    items = maker.prepare(shards.read_each(shards.places))
    part = Part(items, total=sum(shards.num_samples), features=record)
    return pack_parts({"": part}, out, PackSettings(settings.samples_per_shard))[out]


def check_features(config: TrainConfig) -> bool:
    """Return whether a stage's data come with features, after checking that they are its encoder's.

    Folders without pictures go with either.

    Raises:
        UserError: features are of another encoder or other pixels, some folders have features and
            some have pictures, or the stage does not take features.
    """
    if config.stage != "align":
        return False
    locations = (*(source.path for source in config.data.sources), *config.data.validation)
    shown = [s for s in (ShardSet.open(p, features=True) for p in locations) if s.num_images != 0]
    encoded = [(s.location, s.features) for s in shown if s.features is not None]
    if not encoded:
        return False
    with_pictures = [source.location for source in shown if source.features is None]
    if with_pictures:
        raise UserError(
            f"{encoded[0][0]} holds an encoder's features and {with_pictures[0]} pictures: give "
            "data.train and data.validation features of all pictures (`vlm shards features`), or "
            "of none"
        )
    folder = config.init_from.encoder
    assert folder is not None  # a parent of the stage
    if is_tower_folder(folder):
        raise UserError(
            f"{encoded[0][0]} holds features of a model folder's encoder, and init_from.encoder "
            f"{folder} is another library's tower: name that model folder"
        )
    ours = weights_sha256(folder, ("encoder",))
    for location, record in encoded:
        _check_record(config, location, record, ours)
    return True


def _check_record(
    config: TrainConfig, location: str, record: FeatureRecord, encoder_sha256: str
) -> None:
    if record.encoder_sha256 != encoder_sha256:
        raise UserError(
            f"{location} holds features of the encoder with sha256 {record.encoder_sha256}; that "
            f"of init_from.encoder {config.init_from.encoder} has {encoder_sha256}: make them anew "
            "with `vlm shards features`"
        )
    vision = config.model.vision.model_dump(mode="json")
    if unlike := differences(vision, record.vision, "model.vision"):
        problems = [f"{path} is {left!r} here and {right!r} there" for path, left, right in unlike]
        raise UserError(f"the features in {location} are of other tiles: {listed(problems)}")
    if record.draft != config.data.draft:
        pixels = "drafts of pictures" if record.draft else "exact pictures"
        raise UserError(
            f"{location} holds features of {pixels}, and data.draft is {config.data.draft}: "
            f"set data.draft={str(record.draft).lower()}, or make them anew"
        )


class _Maker:
    """Turns samples with pictures into samples with features."""

    def __init__(
        self,
        encoder: VisionEncoder,
        processor: Processor,
        settings: FeatureSettings,
        device: torch.device,
    ) -> None:
        self.encoder = encoder
        self.processor = processor
        self.settings = settings
        self.device = device

    def prepare(self, samples: Iterable[RawSample | Reject]) -> Iterator[Prepared | Reject]:
        """Yield each sample ready to be written, in their order."""
        rest = iter(samples)
        with ThreadPoolExecutor() as pool:  # decoding leaves Python's lock
            while chunk := list(islice(rest, CHUNK_SAMPLES)):
                tiled = list(pool.map(self._tile, chunk))
                pictures = [p for item in tiled if not isinstance(item, Reject) for p in item[1]]
                encoded = self._encode(pictures)
                yield from (_prepared(item, encoded) for item in tiled)

    def _tile(self, raw: RawSample | Reject) -> Tiled:
        if isinstance(raw, Reject):
            return raw
        tile = partial(self.processor.tile_file, draft=self.settings.draft)
        try:
            return raw, list(map(tile, raw.images))
        except ImageError as error:
            return Reject(raw.key, f"bad picture: {error}")

    def _encode(self, pictures: Sequence[TiledImage]) -> Iterator[EncodedImage]:
        """Yield what the encoder makes of pictures, in their order."""
        batch: list[TiledImage] = []
        for picture in pictures:
            num_tiles = sum(other.num_tiles for other in batch)
            if batch and num_tiles + picture.num_tiles > self.settings.batch_tiles:
                yield from self._encode_batch(batch)
                batch = []
            batch.append(picture)
        if batch:
            yield from self._encode_batch(batch)

    @torch.inference_mode()
    def _encode_batch(self, pictures: Sequence[TiledImage]) -> list[EncodedImage]:
        images = stack_images([pictures])
        assert images is not None
        images = images.to(self.device)
        dtype = DTYPES[self.settings.dtype]
        autocast = self.device.type == "cuda" and dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            features = self.encoder(images.pixels, images.num_tiles, images.aspect_ratio_ids)
        parts = features.to(dtype).cpu().split([picture.num_tiles for picture in pictures])
        return [
            EncodedImage(part, picture.aspect_ratio_id)
            for part, picture in zip(parts, pictures, strict=True)
        ]


def _prepared(item: Tiled, encoded: Iterator[EncodedImage]) -> Prepared | Reject:
    """A sample as it is written; takes what its pictures became from `encoded`."""
    if isinstance(item, Reject):
        return item
    raw, pictures = item
    return Prepared(
        key=raw.key,
        text=raw.sample.to_json().encode(),
        num_turns=raw.sample.num_turns,
        images=[(features_bytes(next(encoded)), EXTENSION) for _ in pictures],
        # Nothing is compared: the shards that were read have been packed before.
        names=(),
        picture_hashes=(),
        content_hash="",
    )
