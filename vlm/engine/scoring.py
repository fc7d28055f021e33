"""How likely token ids are after a prompt, for many prompts and continuations together.

A prompt and all of its continuations are one row: the prompt once, then each continuation, which
attends to the prompt and to itself, at the positions that follow the prompt. So the prompt and its
images are run once, whatever the number of continuations, and nothing is copied.

Axes: `B` rows, `S` their tokens, `D` width, `V` vocabulary, `P` places that tokens are told at,
`K` tokens that are told.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.tiling import TiledImage
from vlm.engine.image_cache import ImageCache, Layers, image_key
from vlm.engine.request import check_prompt
from vlm.engine.row_images import RowImages, group_images, read_images, row_images
from vlm.inputs import EncodedImage, Example, batch_order
from vlm.model import VisionLanguageModel

# A pass has at most so many tokens, padding counted, unless a single row has more.
PASS_TOKENS = 16_384
# What follows a prompt stands in one row up to so many tokens, or as many as the prompt has. As
# attention costs a row's length squared, more would cost more than the prompt run once more: texts
# without a prompt all have the same one, the token that starts a text.
ROW_TOKENS = 256
# Of pictures encoded in one pass.
PASS_TILES = 32
# Logits are made for so many places at a time: a large vocabulary's do not fit otherwise.
LOGIT_PLACES = 256

Tokens = tuple[int, ...]
RowKey = tuple[Tokens, tuple[str, ...]]  # a prompt and the keys of its images


@dataclass(frozen=True)
class Likelihood:
    """How likely a text is after what stands before it, token by token.

    token_logprobs: natural logarithms of the probabilities, over the whole output layer, in
        float32.
    greedy: whether each token is the likeliest at its place.
    """

    token_logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]

    @property
    def logprob(self) -> float:
        """Of all tokens together: the sum, in float64."""
        return math.fsum(self.token_logprobs)

    @property
    def num_tokens(self) -> int:
        """How many there are."""
        return len(self.token_logprobs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy generation would write exactly this."""
        return all(self.greedy)


@dataclass(frozen=True)
class Choices:
    """A prompt, and the token ids of what may follow it."""

    prompt: Example
    continuations: tuple[Tokens, ...]


@dataclass(frozen=True)
class _Row:
    """A prompt with what may follow it in any request, each once.

    images: by their keys.
    """

    prompt: Tokens
    image_keys: tuple[str, ...]
    images: Mapping[str, TiledImage | EncodedImage]
    continuations: dict[Tokens, None]

    @property
    def num_tokens(self) -> int:
        """Tokens that are run: a continuation's last one is told and not read."""
        return len(self.prompt) + sum(len(tokens) - 1 for tokens in self.continuations)

    def parts(self) -> Iterator["_Row"]:
        """The prompt with some continuations each, so that no row is longer than is worth it."""
        most = max(ROW_TOKENS, len(self.prompt))
        part: dict[Tokens, None] = {}
        num_tokens = 0
        for tokens in self.continuations:
            if part and num_tokens + len(tokens) > most:
                yield replace(self, continuations=part)
                part, num_tokens = {}, 0
            part[tokens] = None
            num_tokens += len(tokens)
        if part:
            yield replace(self, continuations=part)


class Scorer:
    """Tells how likely continuations are. Its network's weights must not change.

    Thread-safe. A result does not depend on the other requests, but for the last bits.

    Args:
        images: kept images of the network.
    """

    def __init__(self, network: VisionLanguageModel, images: ImageCache) -> None:
        self.network, self.images = network, images
        self._device = network.decoder.embed_tokens.weight.device

    @torch.inference_mode()
    def score(self, requests: Sequence[Choices], batch_size: int) -> list[list[Likelihood]]:
        """Return the likelihood of each continuation of each request.

        Requests of one prompt share its pass, unless much follows it (`ROW_TOKENS`). Where
        `dynamic` positions depend on a row's length, they are those of writing the continuation
        token by token.

        Args:
            batch_size: prompts run together, at most.
        Raises:
            ValueError: a prompt or a continuation is empty, too long, or of other ids or images
                than the network has.
            RuntimeError: the network's logits are not finite.
        """
        pictures = {id(image): image for choices in requests for image in choices.prompt.images}
        names = {number: image_key(image) for number, image in pictures.items()}
        prompts: dict[RowKey, _Row] = {}
        wanted = []
        for request in requests:
            self._check(request)
            images = {names[id(image)]: image for image in request.prompt.images}
            shown = tuple(names[id(image)] for image in request.prompt.images)
            key = tuple(request.prompt.input_ids.tolist()), shown
            row = prompts.setdefault(key, _Row(*key, images, {}))
            row.continuations.update(dict.fromkeys(request.continuations))
            wanted.append((key, request.continuations))
        told: dict[RowKey, dict[Tokens, Likelihood]] = {key: {} for key in prompts}
        rows = [part for row in prompts.values() for part in row.parts()]
        for batch in _batches(rows, batch_size):
            for row, likelihoods in zip(batch, self._run(batch), strict=True):
                told[row.prompt, row.image_keys] |= likelihoods
        return [[told[key][tokens] for tokens in continuations] for key, continuations in wanted]

    def _check(self, request: Choices) -> None:
        config, prompt = self.network.decoder.config, request.prompt.input_ids.tolist()
        if not prompt or not all(request.continuations):
            raise ValueError("a prompt and each of its continuations need a token")
        longest = len(prompt) - 1 + max(map(len, request.continuations), default=1)
        if longest > config.max_positions:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and what follows it are {longest} without the "
                f"last; the model has {config.max_positions} positions"
            )
        check_prompt(self.network, prompt, len(request.prompt.images))
        for token in (token for tokens in request.continuations for token in tokens):
            if not 0 <= token < config.vocab_size or token == self.network.image_token_id:
                raise ValueError(f"the network never writes the id {token} of a continuation")

    def _run(self, rows: Sequence[_Row]) -> list[dict[Tokens, Likelihood]]:
        batch = _Batch(rows)
        input_ids = batch.input_ids.to(self._device)
        seen = self._read_images(rows)
        hidden = self.network.decoder(
            input_ids,
            batch.positions.to(self._device),
            group_images(seen, len(rows), input_ids.shape[1], self._device),
            lengths=batch.lengths.to(self._device),
            mask=None if batch.mask is None else batch.mask.to(self._device),
        )
        logprobs, greedy = self._tell(hidden.flatten(0, 1), batch.places, batch.targets)
        if not logprobs.isfinite().all():
            raise RuntimeError("the network's logits are not finite")
        told = iter(zip(logprobs.tolist(), greedy.tolist(), strict=True))
        found = []
        for row in rows:
            pairs = {tokens: [next(told) for _ in tokens] for tokens in row.continuations}
            found.append(
                {
                    tokens: Likelihood(tuple(p for p, _ in pair), tuple(g for _, g in pair))
                    for tokens, pair in pairs.items()
                }
            )
        return found

    def _read_images(self, rows: Sequence[_Row]) -> dict[int, tuple[RowImages, Tensor]]:
        """What the tokens of rows see: those of a continuation what the prompt's last one sees."""
        images = {key: image for row in rows for key, image in row.images.items()}
        layers = read_images(self.network, images, self.images, PASS_TILES)
        seen = {}
        for number, row in enumerate(rows):
            if row.image_keys:
                kept: list[Layers] = [layers[key] for key in row.image_keys]
                shown = row_images(self.network, row.prompt, row.image_keys, kept)
                num_following = row.num_tokens - len(row.prompt)
                following = shown.visible[-1:].expand(num_following, -1)
                seen[number] = shown, torch.cat([shown.visible, following])
        return seen

    def _tell(self, hidden: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The log probabilities (K,) float32 of tokens, and whether each is the likeliest.

        Args:
            hidden: (B * S, D).
            places: (K,) int64, the place before each token.
            targets: (K,) int64, the tokens.
        """
        distinct, index = torch.unique(places, return_inverse=True)  # (P,), (K,)
        logprobs = torch.empty(len(targets))
        greedy = torch.empty(len(targets), dtype=torch.bool)
        for start in range(0, len(distinct), LOGIT_PLACES):
            chunk = distinct[start : start + LOGIT_PLACES]
            logits = self.network.decoder.logits(hidden[chunk.to(hidden.device)]).float()
            inside = (index >= start) & (index < start + len(chunk))
            rows, tokens = (w[inside].to(hidden.device) for w in (index - start, targets))
            logprobs[inside] = logits.log_softmax(dim=-1)[rows, tokens].cpu()
            greedy[inside] = (logits.argmax(dim=-1)[rows] == tokens).cpu()
        return logprobs, greedy


class _Batch:
    """Rows as the decoder reads them, padded on the right; on the CPU.

    input_ids, positions, lengths: (B, S) int64; a length is what a token's row had when it was
        written: the whole prompt, or up to the token itself.
    mask: (B, 1, S, S) bool, who may attend to whom; None where that is causal.
    places: (K,) int64, the place in `input_ids`, flattened, before each token of continuations.
    targets: (K,) int64, those tokens.
    """

    def __init__(self, rows: Sequence[_Row]) -> None:
        ids, positions, branches = [], [], []
        num_columns = max(row.num_tokens for row in rows)
        places: list[int] = []
        targets: list[int] = []
        for number, row in enumerate(rows):
            num_prompt = len(row.prompt)
            row_ids, row_positions = list(row.prompt), list(range(num_prompt))
            row_branches = [0] * num_prompt
            for branch, tokens in enumerate(row.continuations, start=1):
                first = number * num_columns + len(row_ids)
                places += [number * num_columns + num_prompt - 1]
                places += range(first, first + len(tokens) - 1)
                targets += tokens
                row_ids += tokens[:-1]
                row_positions += range(num_prompt, num_prompt + len(tokens) - 1)
                row_branches += [branch] * (len(tokens) - 1)
            ids.append(torch.tensor(row_ids))
            positions.append(torch.tensor(row_positions))
            branches.append(torch.tensor(row_branches))
        self.input_ids = pad_sequence(ids, batch_first=True)
        self.positions = pad_sequence(positions, batch_first=True)
        self.places, self.targets = torch.tensor(places), torch.tensor(targets)
        branch_of = pad_sequence(branches, batch_first=True)  # (B, S)
        num_prompt_tokens = torch.tensor([len(row.prompt) for row in rows]).unsqueeze(1)
        self.lengths = torch.maximum(self.positions + 1, num_prompt_tokens)
        self.mask = None
        if any(sum(len(tokens) > 1 for tokens in row.continuations) > 1 for row in rows):
            query, key = branch_of.unsqueeze(2), branch_of.unsqueeze(1)
            self.mask = ((key == 0) | (key == query)).tril().unsqueeze(1)


def _batches(rows: Sequence[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Rows of like length together, those that show the same images side by side."""
    batch: list[_Row] = []
    longest = 0
    lengths = [row.num_tokens for row in rows]
    for index in batch_order(lengths, [row.image_keys for row in rows]):
        longest = max(longest, lengths[index])
        full = len(batch) == batch_size or longest * (len(batch) + 1) > PASS_TOKENS
        if batch and full:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(rows[index])
    if batch:
        yield batch
