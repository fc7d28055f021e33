"""Cross-entropy of the output layer, without ever holding the logits of many tokens.

Axes: `n` supervised tokens, `D` width, `V` vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm.decoder.stack import Decoder

# Float32 logits that may be held at once; those of 523 tokens with Llama 3's vocabulary. Losing no
# speed needs a few hundred tokens at a time, and softmax and gradient take as much again.
MAX_LOGITS_BYTES = 2**28


def summed_cross_entropy(
    decoder: Decoder, hidden: Tensor, targets: Tensor, max_bytes: int = MAX_LOGITS_BYTES
) -> Tensor:
    """Return the cross-entropy of hidden states (n, D) with targets (n,), summed; float32.

    Where the logits fit into `max_bytes` they are computed at once. Otherwise they are computed for
    some tokens after the other, and their gradients along with them, so that no logits wait for the
    backward pass. Both ways do the same products; sums run in another order. The second holds the
    gradient of the output weight (V, D) from the forward to the backward pass, if it learns.
    """
    chunk_tokens = tokens_at_once(decoder.config.vocab_size, max_bytes)
    if len(hidden) <= chunk_tokens:
        return F.cross_entropy(decoder.logits(hidden).float(), targets, reduction="sum")
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, decoder.output_weight, targets, chunk_tokens)
    return total


def score_tokens(
    decoder: Decoder, hidden: Tensor, targets: Tensor, max_bytes: int = MAX_LOGITS_BYTES
) -> tuple[float, Tensor]:
    """Return the summed cross-entropy, and where the likeliest token is the target, (n,) bool.

    For evaluation: no gradients, and at most `max_bytes` of logits at once.
    """
    total = 0.0
    right = torch.empty_like(targets, dtype=torch.bool)
    for part in _parts(len(hidden), tokens_at_once(decoder.config.vocab_size, max_bytes)):
        logits = decoder.logits(hidden[part])
        total += F.cross_entropy(logits.float(), targets[part], reduction="sum").item()
        right[part] = logits.argmax(dim=-1) == targets[part]
    return total, right


def tokens_at_once(vocab_size: int, max_bytes: int = MAX_LOGITS_BYTES) -> int:
    """Return how many tokens' float32 logits fit into `max_bytes`; one at least."""
    return max(1, max_bytes // (4 * vocab_size))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss and its gradients, chunk by chunk, in the forward pass; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int
    ) -> Tensor:
        hidden_learns, weight_learns = ctx.needs_input_grad[:2]
        matrix = weight.to(_product_dtype(weight))
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if hidden_learns else None
        # Of any number of chunks, so in float32, whatever the weight's dtype is.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if weight_learns else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _parts(len(hidden), chunk_tokens):
                rows = hidden[part].to(matrix.dtype)  # (chunk, D)
                loss, gradient = _loss_and_gradient((rows @ matrix.T).float(), targets[part])
                total += loss
                gradient = gradient.to(matrix.dtype)  # (chunk, V)
                if hidden_gradient is not None:
                    hidden_gradient[part] = gradient @ matrix
                if weight_gradient is not None:
                    weight_gradient += gradient.T @ rows
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.gradients = hidden_gradient, weight_gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a chunked cross-entropy can be taken once only")
        gradients, ctx.gradients = ctx.gradients, None
        # In place: the output weight's gradient may be gigabytes.
        hidden, weight = (None if g is None else g.mul_(factor) for g in gradients)
        return hidden, weight, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss and its gradient (n, V), which takes the logits' place."""
    log_total = logits.logsumexp(dim=-1, keepdim=True)  # (n, 1)
    index = targets.unsqueeze(1)
    loss = (log_total - logits.gather(1, index)).sum()
    gradient = logits.sub_(log_total).exp_()
    return loss, gradient.scatter_add_(1, index, gradient.new_full((1, 1), -1.0).expand_as(index))


def _parts(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, start + chunk_tokens)


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which autocast, if it is on, multiplies matrices."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
