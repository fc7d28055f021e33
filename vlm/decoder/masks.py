"""Who sees what: which image tokens a text token may attend to.

Axes: `B` batch, `S` text length, `M` images of a row, `L` image tokens of a row. `_mask`: True
means attend.
"""

from typing import Literal

import torch
from torch import Tensor

ImageVisibility = Literal["latest", "all_previous"]


def visible_images(
    input_ids: Tensor,
    positions: Tensor,
    image_token_id: int,
    max_images: int,
    visibility: ImageVisibility,
) -> Tensor:
    """Return (B, S, M) bool: whether the text token at S sees image M of its row.

    An image becomes visible at its own `<|image|>` token. Under `latest` it stays so until the
    next image; images whose tokens stand side by side count as one and stay together. Under
    `all_previous` it stays visible to the end. Where positions (B, S) start anew at 0, another
    document begins, which sees no image of those before it.
    """
    is_image = input_ids == image_token_id  # (B, S)
    num_seen = is_image.cumsum(dim=1)  # (B, S)
    opens = positions == 0  # (B, S): from here on, images before this place are out of sight
    if visibility == "latest":
        opens[:, 1:] |= is_image[:, 1:] & ~is_image[:, :-1]
    num_before = torch.where(opens, num_seen - is_image.long(), 0)
    first_visible = num_before.cummax(dim=1).values  # (B, S)
    images = torch.arange(max_images, device=input_ids.device)
    return (images >= first_visible.unsqueeze(-1)) & (images < num_seen.unsqueeze(-1))


def image_token_mask(visible: Tensor, token_image_index: Tensor) -> Tensor:
    """Spread image visibility over image tokens.

    Args:
        visible: (B, S, M) bool.
        token_image_index: (B, L) int64, the row's image that each token belongs to, -1 for padding.
    Returns:
        (B, S, L) bool.
    """
    is_token = token_image_index >= 0
    index = token_image_index.clamp(min=0).unsqueeze(1).expand(-1, visible.shape[1], -1)
    return visible.gather(2, index) & is_token.unsqueeze(1)
