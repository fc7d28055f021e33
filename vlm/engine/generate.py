"""Batched generation over token ids, with cached keys and values.

Axes: `B` batch, `S` text length, `L` image tokens of a row.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from vlm.decoder.cache import KeyValues, TextCache
from vlm.decoder.stack import ImageContext
from vlm.engine.sampling import Sampler, SamplingConfig
from vlm.inputs import ModelInputs
from vlm.model import VisionLanguageModel, row_positions


class Generation:
    """A batch of rows being continued, a token a step.

    The prompt is run once; the keys and values of its images are computed once and kept. A row
    ends at an `eos_ids` token, at `max_new_tokens`, or when `finish` is called on it.

    Args:
        suppressed_ids: tokens that are never generated.
    Raises:
        ValueError: the prompt and `max_new_tokens` exceed the model's positions.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        inputs: ModelInputs,
        max_new_tokens: int,
        sampling: SamplingConfig,
        eos_ids: Collection[int],
        suppressed_ids: Collection[int] = (),
    ) -> None:
        decoder = model.decoder
        num_rows, prompt_tokens = inputs.input_ids.shape
        limit = decoder.config.max_positions
        if prompt_tokens + max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {prompt_tokens} tokens and {max_new_tokens} new ones exceed "
                f"the model's {limit} positions"
            )
        self.model = model
        self.eos_ids = frozenset(eos_ids)
        self.suppressed_ids = sorted(suppressed_ids)
        self.remaining = [max_new_tokens] * num_rows
        self.sampler = Sampler(sampling, num_rows)
        self.positions = inputs.lengths.unsqueeze(1)  # (B, 1), of the next token
        self.cache = TextCache(
            decoder.config,
            num_rows,
            prompt_tokens + max_new_tokens,
            inputs.input_ids.device,
            decoder.embed_tokens.weight.dtype,
        )
        self.images, self.logits = self._prefill(inputs)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return not any(self.remaining)

    def finish(self, row: int) -> None:
        """End a row."""
        self.remaining[row] = 0

    @torch.inference_mode()
    def step(self) -> list[int | None]:
        """Return each row's next token, None for rows that have ended."""
        if self.suppressed_ids:
            self.logits[:, self.suppressed_ids] = -torch.inf
        token_ids = self.sampler(self.logits)
        tokens: list[int | None] = []
        for row, token in enumerate(token_ids.tolist()):
            tokens.append(token if self.remaining[row] else None)
            self.remaining[row] = max(0, self.remaining[row] - 1)
            if token in self.eos_ids:
                self.finish(row)
        if not self.done:
            hidden = self.model.decoder(
                token_ids.unsqueeze(1), self.positions, self.images, self.cache
            )
            self.logits = self.model.decoder.logits(hidden[:, -1])
            # Rows that have ended stay where they are; what they compute is not used.
            self.positions = (self.positions + 1).clamp(max=self.cache.max_tokens - 1)
        return tokens

    @torch.inference_mode()
    def _prefill(self, inputs: ModelInputs) -> tuple[ImageContext | None, Tensor]:
        """Run the prompt; return what later tokens see of the images, and the first logits."""
        decoder = self.model.decoder
        images: ImageContext | None = None
        last = inputs.lengths - 1  # (B,)
        rows = torch.arange(len(last), device=last.device)
        positions = row_positions(inputs.input_ids)
        if inputs.images is not None:
            context = self.model.image_context(inputs, positions)
            assert isinstance(context.tokens, torch.Tensor)
            projected: dict[int, KeyValues] = decoder.project_images(context.tokens)
            images = ImageContext(projected, context.mask)
        hidden = decoder(inputs.input_ids, positions, images, self.cache, inputs.lengths)
        if images is not None:
            # What is generated sees what the prompt's last token saw.
            images = ImageContext(images.tokens, images.mask[rows, last].unsqueeze(1))
        return images, decoder.logits(hidden[rows, last])
