"""Attention drawn over a picture, with its tiles."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlm.attention_maps import Box, Placement

# The longer side of what is drawn: small pictures are enlarged, so that labels fit and can be read.
DRAWN_PX = 720
GLOW = np.array((255, 96, 0), dtype=np.float32)
# How much of the picture is left where nothing is attended to, and of the glow where most is.
DIMMED, GLOW_SHARE = 0.3, 0.3
LINE = (255, 255, 255)
LABEL_PX = 30


def draw_attention(
    picture: Image.Image, placement: Placement, patches: Tensor, tile_shares: Sequence[float]
) -> Image.Image:
    """Draw where attention lies: the brightest patch has most, dark ones none.

    Args:
        picture: RGB, of any size.
        patches: (rows, columns) attention to the patches of the canvas.
        tile_shares: of every tile, for its label.
    """
    scale = DRAWN_PX / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    drawn = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    strongest = float(patches.max()) or 1.0
    heat = placement.on_picture(patches, height, width).numpy()[..., None] / strongest  # (H, W, 1)
    lit = drawn * (DIMMED + (1 - DIMMED) * heat)
    lit = lit * (1 - GLOW_SHARE * heat) + GLOW * GLOW_SHARE * heat
    overlaid = Image.fromarray(lit.round().clip(0, 255).astype(np.uint8))
    for box, share in zip(placement.tile_boxes(height, width), tile_shares, strict=True):
        if box is not None:
            _draw_tile(overlaid, box, f"{share:.0%}")
    return overlaid


def _draw_tile(picture: Image.Image, box: Box, label: str) -> None:
    """Frame a tile and write its share into its lower left corner."""
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = box
    draw.rectangle((left, top, right - 1, bottom - 1), outline=LINE, width=2)
    font = ImageFont.load_default(LABEL_PX)
    corner = left + 12, bottom - 12
    around = draw.textbbox(corner, label, font=font, anchor="lb")
    padded = around[0] - 6, around[1] - 4, around[2] + 6, around[3] + 4
    draw.rounded_rectangle(padded, radius=6, fill=(0, 0, 0))
    draw.text(corner, label, font=font, anchor="lb", fill=LINE)
