"""Several documents in one row: where each token stands, and which tokens it may attend to.

Axes: `B` batch, `S` text length, `K` documents of a row, `H` heads, `d` head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# flex_attention's fused kernels need heads at least this wide.
MIN_FLEX_HEAD_SIZE = 16


@dataclass(frozen=True)
class DocumentPlaces:
    """Where the tokens of packed rows stand, each (B, S) int64.

    ids: the token's document, counted within its row; padding is a document of its own.
    positions: its place in the document, from 0.
    lengths: tokens of the document.
    """

    ids: Tensor
    positions: Tensor
    lengths: Tensor


def document_places(document_lengths: Tensor, num_tokens: int) -> DocumentPlaces:
    """Place the first `num_tokens` tokens of rows that hold documents one after the other.

    Args:
        document_lengths: (B, K) int64, zeros behind a row's last document.
    """
    device = document_lengths.device
    ends = document_lengths.cumsum(dim=1)  # (B, K)
    place = torch.arange(num_tokens, device=device).expand(len(ends), -1).contiguous()
    ids = torch.searchsorted(ends, place, right=True)  # (B, S); K stands for padding
    starts = torch.nn.functional.pad(ends, (1, 0))  # (B, K + 1)
    padding = (num_tokens - ends[:, -1:]).clamp(min=1)
    lengths = torch.cat([document_lengths, padding], dim=1)  # (B, K + 1)
    return DocumentPlaces(ids, place - starts.gather(1, ids), lengths.gather(1, ids))


def document_mask(document_ids: Tensor, head_size: int) -> "Tensor | BlockMask":
    """Return who may attend to whom: causal, and within a document.

    Dense, (B, 1, S, S) bool, for SDPA on the CPU and for narrow heads; on CUDA in blocks, of which
    flex_attention skips those between documents.
    """
    if document_ids.is_cuda and head_size >= MIN_FLEX_HEAD_SIZE:
        return block_document_mask(document_ids)
    same = document_ids.unsqueeze(2) == document_ids.unsqueeze(1)
    return same.tril().unsqueeze(1)


def block_document_mask(document_ids: Tensor) -> "BlockMask":
    """The mask of `document_mask` in blocks, for `attend_in_blocks`."""
    from torch.nn.attention.flex_attention import create_block_mask

    def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_ids[row, query] == document_ids[row, key])

    num_rows, num_tokens = document_ids.shape
    return create_block_mask(
        may_attend, num_rows, None, num_tokens, num_tokens, device=document_ids.device
    )


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: "BlockMask") -> Tensor:
    """Attention (B, H, S, d) through flex_attention; keys and values may have fewer heads.

    Fused on CUDA. The CPU computes all scores, without a backward pass: that is for comparison.
    """
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = _fused_attention() if query.is_cuda else flex_attention
    # Under autocast rotated heads are float32 and values are not; not every torch casts them here.
    query, key = query.to(value.dtype), key.to(value.dtype)
    gqa = query.shape[1] != key.shape[1]
    attended: Tensor = attend(query, key, value, block_mask=mask, enable_gqa=gqa)
    return attended


@cache
def _fused_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
