"""Rotary position embeddings with Llama 3's and other frequency scalings.

Axes: `B` batch, `S` text length, `H` heads, `d` head width. Rotation pairs channel i with
i + d/2, the layout of Hugging Face checkpoints.
"""

import math

import torch
from torch import Tensor

from vlm.decoder.config import DecoderConfig, RopeScaling


def rotary_frequencies(config: DecoderConfig, device: torch.device) -> tuple[Tensor, float]:
    """Return the angular frequencies (d/2,) float32 and the factor that scales cos and sin.

    The factor is 1 but for YaRN, which sharpens attention by it (section 3.4 of its paper).
    """
    size = config.head_size
    exponents = torch.arange(0, size, 2, device=device).float() / size
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3_frequencies(frequencies, scaling), 1.0
    return _yarn_frequencies(frequencies, config, scaling), 0.1 * math.log(scaling.factor) + 1.0


def rotary_table(
    config: DecoderConfig, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each (B, S, 1, d), for (B, S) int64 positions."""
    frequencies, factor = rotary_frequencies(config, positions.device)
    angles = positions.float().unsqueeze(-1) * frequencies  # (B, S, d/2)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(2)  # (B, S, 1, d)
    return (factor * angles.cos()).to(dtype), (factor * angles.sin()).to(dtype)


def rotate(heads: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys (B, S, H, d) by their positions."""
    cos, sin = table
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule: https://github.com/meta-llama/llama-models, `apply_scaling`."""
    context = scaling.original_max_positions
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = context * frequencies / (2 * math.pi)  # rotations within the trained context
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return blend * frequencies + (1 - blend) * frequencies / scaling.factor


def _yarn_frequencies(frequencies: Tensor, config: DecoderConfig, scaling: RopeScaling) -> Tensor:
    """YaRN's ramp between interpolated and kept frequencies (section 3.2 of its paper)."""
    size = config.head_size

    def channel_of(turns: float) -> float:
        wavelengths = scaling.original_max_positions / (2 * math.pi * turns)
        return size * math.log(wavelengths) / (2 * math.log(config.rope_theta))

    first = max(math.floor(channel_of(scaling.beta_fast)), 0)
    last = min(math.ceil(channel_of(scaling.beta_slow)), size - 1)
    channels = torch.arange(size // 2, device=frequencies.device).float()
    interpolated = ((channels - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies * (interpolated / scaling.factor + 1 - interpolated)
