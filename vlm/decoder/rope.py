"""Rotary position embeddings with Llama 3's and other frequency scalings.

Axes: `B` batch, `S` text length, `H` heads, `d` head width. Rotation pairs channel i with
i + d/2, the layout of Hugging Face checkpoints.
"""

import math

import torch
from torch import Tensor

from vlm.decoder.config import DecoderConfig, RopeScaling


def rotary_frequencies(
    config: DecoderConfig, device: torch.device, lengths: Tensor | None = None
) -> tuple[Tensor, float]:
    """Return angular frequencies (d/2,) float32 and the factor that scales cosines and sines.

    The order of operations is that of transformers, so that frequencies are equal to the bit: at
    position 100,000 the last bit of a frequency is worth 0.01 radians.

    Args:
        lengths: (B,) int64, tokens of each row, or (B, S), of the document that each token
            belongs to. Only `dynamic` scaling reads them, and returns frequencies (B, d/2) or
            (B, S, d/2); without them it returns those of the trained context.
    """
    scaling = config.rope_scaling
    theta = config.rope_theta
    if scaling is None:
        return _frequencies(theta, config.head_size, device), 1.0
    if scaling.kind == "dynamic":
        return _dynamic_frequencies(config, scaling, device, lengths), 1.0
    if scaling.kind == "yarn":
        return _yarn_frequencies(config, scaling, device), _yarn_factor(scaling)
    frequencies = _frequencies(theta, config.head_size, device)
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    return _llama3_frequencies(frequencies, scaling), 1.0


def rotary_table(
    config: DecoderConfig, positions: Tensor, dtype: torch.dtype, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each (B, S, 1, d), for (B, S) int64 positions.

    `lengths` int64 are the tokens of each row so far, without padding, (B,), or of each token's
    document, (B, S); None takes every position to be a token of its row.
    """
    if lengths is None:
        lengths = positions[:, -1] + 1
    frequencies, factor = rotary_frequencies(config, positions.device, lengths)
    if frequencies.dim() == 2:
        frequencies = frequencies.unsqueeze(1)  # (B, 1, d/2)
    angles = positions.float().unsqueeze(-1) * frequencies  # (B, S, d/2)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(2)  # (B, S, 1, d)
    return (factor * angles.cos()).to(dtype), (factor * angles.sin()).to(dtype)


def rotate(heads: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys (B, S, H, d) by their positions."""
    cos, sin = table
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def _frequencies(theta: float | Tensor, size: int, device: torch.device) -> Tensor:
    exponents = torch.arange(0, size, 2, device=device).float() / size
    return 1.0 / (theta**exponents)


def _dynamic_frequencies(
    config: DecoderConfig, scaling: RopeScaling, device: torch.device, lengths: Tensor | None
) -> Tensor:
    """NTK-aware scaling: the base grows with the row beyond the trained context.

    The length of the row, or of the document in it, counts, not that of the longest row of its
    batch. Keys in a cache keep the base of the step that wrote them, as in transformers.
    https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
    """
    size, context = config.head_size, scaling.original_max_positions
    assert context is not None
    if lengths is None:
        lengths = torch.tensor([context], device=device)
    lengths = lengths.unsqueeze(-1)  # (B, 1) or (B, S, 1)
    stretch = scaling.factor * lengths / context - (scaling.factor - 1)
    theta = config.rope_theta * stretch ** (size / (size - 2))
    theta = torch.where(lengths > context, theta, config.rope_theta)
    return _frequencies(theta, size, device)


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule: https://github.com/meta-llama/llama-models, `apply_scaling`."""
    context = scaling.original_max_positions
    assert context is not None
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    stretched = frequencies / scaling.factor
    kept = (context / wavelengths - low) / (high - low)
    blended = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    outer = torch.where(wavelengths > context / low, stretched, frequencies)
    inner = (wavelengths >= context / high) & (wavelengths <= context / low)
    return torch.where(inner, blended, outer)


def _yarn_frequencies(config: DecoderConfig, scaling: RopeScaling, device: torch.device) -> Tensor:
    """YaRN's ramp between interpolated and kept frequencies (section 3.2 of its paper)."""
    size, context = config.head_size, scaling.original_max_positions
    assert context is not None

    def channel_of(turns: float) -> float:
        wavelengths = context / (turns * 2 * math.pi)
        return size * math.log(wavelengths) / (2 * math.log(config.rope_theta))

    first, last = channel_of(scaling.beta_fast), channel_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    channels = torch.arange(size // 2, dtype=torch.float32, device=device)
    kept = 1 - ((channels - first) / (last - first)).clamp(0, 1)
    powers = config.rope_theta ** (torch.arange(0, size, 2, device=device).float() / size)
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_factor(scaling: RopeScaling) -> float:
    """What sharpens attention as the context grows (section 3.4 of YaRN's paper)."""

    def sharpened(scale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * scale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale is not None and scaling.mscale_all_dim is not None:
        return sharpened(scaling.mscale) / sharpened(scaling.mscale_all_dim)
    return sharpened(1.0)
