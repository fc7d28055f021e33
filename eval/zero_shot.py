"""Zero-shot classification and retrieval by an encoder stage's two towers.

As open_clip and CLIP_benchmark do it: a class is the normalised mean of the unit embeddings of its
texts, one a template (https://arxiv.org/abs/2103.00020, section 3.1.4); a picture's class is that
of the highest cosine. Retrieval ranks all captions for a picture, and all pictures for a caption.

What is found of a picture is its prediction, a text: of `classify` the names of the likeliest
classes, a line each, best first; of `retrieve` the places at which it and its captions were found.
The metrics `classification` and `retrieval` read these (eval/metrics/zero_shot.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eval.benchmark import BenchmarkConfig
from eval.items import Item
from eval.predictions import Prediction
from vlm.api import find_device, find_dtype
from vlm.chat.processor import Processor
from vlm.contrastive import TwoTowers, load_two_towers
from vlm.errors import UserError
from vlm.inputs import stack_images

# What of `ask` is for the towers; all else is for whole models.
TASKS = ("classify", "retrieve")
# Classes of which a prediction names the likeliest, for top-5 accuracy.
NUM_NAMED = 5
# Rows of similarities held at a time.
ROWS = 1024

ValueT = TypeVar("ValueT")


def for_towers(benchmarks: Sequence[BenchmarkConfig]) -> bool:
    """Whether benchmarks are for an encoder stage's towers, and not for whole models.

    Raises:
        UserError: some are and some are not; no folder holds both.
    """
    found = {benchmark.ask in TASKS: benchmark.name for benchmark in benchmarks}
    if len(found) > 1:
        raise UserError(
            f"{found[True]} is for the folder of an encoder stage, {found[False]} for a whole "
            "model: measure them one after the other"
        )
    return True in found


@dataclass(frozen=True)
class ZeroShot:
    """An encoder stage's towers, and how many pictures or texts they read together."""

    folder: Path
    towers: TwoTowers
    processor: Processor
    max_tokens: int
    device: torch.device
    batch_size: int = 32

    @classmethod
    def load(
        cls, folder: Path, device: str = "auto", dtype: str = "auto", batch_size: int = 32
    ) -> "ZeroShot":
        """Load an encoder stage's folder; see `load_two_towers` for what it refuses."""
        place = find_device(device)
        towers = load_two_towers(folder, place, find_dtype(dtype, place))
        return cls(folder, *towers, place, batch_size)

    @property
    def dtype(self) -> str:
        """Of the weights: `float32`."""
        return str(self.towers.head.log_scale.dtype).removeprefix("torch.")

    def predict(self, benchmark: BenchmarkConfig, items: Sequence[Item]) -> list[Prediction]:
        """A prediction for each item, in order. Retrieval is among these items.

        Raises:
            UserError: the benchmark asks for something else, or a picture cannot be read.
        """
        if benchmark.ask not in TASKS:
            raise UserError(
                f"{benchmark.name} asks to {benchmark.ask}, which needs a whole model: an encoder "
                "stage's folder can classify and retrieve"
            )
        hashes: list[str] = []
        images = self._embed_pictures(items, hashes)
        if benchmark.ask == "classify":
            texts = self._classify(items, images, benchmark.templates)
        else:
            texts = self._retrieve(items, images)
        return [
            Prediction(id=item.id, text=text, images=(content,))
            for item, text, content in zip(items, texts, hashes, strict=True)
        ]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (n, E) float32 on the CPU; a text is cut to what the tower reads."""
        tokenizer = self.processor.tokenizer
        room = self.max_tokens - 1
        found = []
        for batch in _batches(texts, self.batch_size):
            rows = [
                torch.tensor([*ids[:room], tokenizer.eot_id])
                for ids in tokenizer.encode_batch(list(batch))
            ]
            ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_id)
            with torch.inference_mode():
                found.append(self.towers.embed_texts(ids.to(self.device)).float().cpu())
        return torch.cat(found)

    def class_embeddings(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Unit embeddings (n, E) of classes: the means of their texts' embeddings, normalised."""
        texts = [template.format_map({"class": name}) for name in names for template in templates]
        embeddings = self.embed_texts(texts).view(len(names), len(templates), -1)
        return F.normalize(embeddings.mean(dim=1), dim=-1)

    def _embed_pictures(self, items: Sequence[Item], hashes: list[str]) -> Tensor:
        """Unit embeddings (n, E) float32 on the CPU; `hashes` gets those of the files."""
        found = []
        for batch in _batches(items, self.batch_size):
            tiled = []
            for item in batch:
                if len(item.images) != 1:
                    raise UserError(f"item {item.id!r} has {len(item.images)} pictures, needed: 1")
                content = item.images[0].read()
                hashes.append(sha256(content).hexdigest())
                # Each an object of its own: `stack_images` joins what is the same.
                tiled.append([self.processor.tile_file(content)])
            images = stack_images(tiled)
            assert images is not None
            with torch.inference_mode():
                embedded = self.towers.embed_images(images.to(self.device))
            found.append(embedded.float().cpu())
        return torch.cat(found)

    def _classify(
        self, items: Sequence[Item], images: Tensor, templates: Sequence[str]
    ) -> list[str]:
        names = items[0].choices
        if any(item.choices != names for item in items):
            raise UserError("items differ in their classes; a benchmark has the same for all")
        classes = self.class_embeddings(names, templates)
        best = (images @ classes.T).topk(min(NUM_NAMED, len(names)), dim=1).indices
        return ["\n".join(names[place] for place in row) for row in best.tolist()]

    def _retrieve(self, items: Sequence[Item], images: Tensor) -> list[str]:
        texts = self.embed_texts([caption for item in items for caption in item.answers])
        owners = torch.tensor(
            [place for place, item in enumerate(items) for _ in item.answers], dtype=torch.int64
        )
        by_picture = _places(images, texts, torch.arange(len(items)), owners).tolist()
        by_caption = _places(texts, images, owners, torch.arange(len(items))).tolist()
        found: list[list[int]] = [[] for _ in items]
        for owner, place in zip(owners.tolist(), by_caption, strict=True):
            found[owner].append(place)
        return [
            f"finds a caption at {first}; found by its captions at {' '.join(map(str, places))}"
            for first, places in zip(by_picture, found, strict=True)
        ]


def _places(queries: Tensor, keys: Tensor, query_owner: Tensor, key_owner: Tensor) -> Tensor:
    """For each query (q, E), the place from 1 at which the first key (k, E) of its owner is found.

    Keys are in the order of their cosine; among equal ones, of their number.
    """
    found = []
    for start in range(0, len(queries), ROWS):
        rows = slice(start, start + ROWS)
        similarity = queries[rows] @ keys.T  # (rows, k)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        own = key_owner[order] == query_owner[rows].unsqueeze(1)
        found.append(own.int().argmax(dim=1) + 1)
    return torch.cat(found)


def _batches(values: Sequence[ValueT], size: int) -> Iterator[Sequence[ValueT]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
