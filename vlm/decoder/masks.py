"""Who sees what: which image tokens a text token may attend to.

Axes: `B` batch, `S` text length, `M` images of a row, `L` image tokens of a row. `_mask`: True
means attend.
"""

from typing import Literal

import torch
from torch import Tensor

ImageVisibility = Literal["latest", "all_previous"]


def visible_images(
    input_ids: Tensor, image_token_id: int, max_images: int, visibility: ImageVisibility
) -> Tensor:
    """Return (B, S, M) bool: whether the text token at S sees image M of its row.

    An image becomes visible at its own `<|image|>` token. Under `latest` it stays so until the
    next image; images whose tokens stand side by side count as one and stay together. Under
    `all_previous` it stays visible to the end.
    """
    is_image = input_ids == image_token_id  # (B, S)
    num_seen = is_image.cumsum(dim=1)  # (B, S)
    images = torch.arange(max_images, device=input_ids.device)
    seen = images < num_seen.unsqueeze(-1)  # (B, S, M)
    if visibility == "all_previous":
        return seen
    opens_run = is_image.clone()
    opens_run[:, 1:] &= ~is_image[:, :-1]
    run = opens_run.cumsum(dim=1)  # (B, S): the run of adjacent images last opened
    # Images before the current run: all but those of the run itself, counted at its first token.
    before_run = torch.where(opens_run, num_seen - 1, torch.zeros_like(num_seen))
    before_run = before_run.cummax(dim=1).values  # (B, S)
    in_run = (images >= before_run.unsqueeze(-1)) & (run > 0).unsqueeze(-1)
    return seen & in_run


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
