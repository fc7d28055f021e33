"""How encoded samples become batches: packed into sequences, cut by budgets.

Pure functions of sizes: what is in a row does not matter here.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from data.config import DataConfig


class Row(Protocol):
    """An encoded sample: the text tokens of each of its rows, and the tiles of its pictures."""

    @property
    def row_tokens(self) -> tuple[int, ...]: ...

    @property
    def num_tiles(self) -> int: ...


RowT = TypeVar("RowT", bound=Row)


def group_samples(samples: Sequence[RowT], config: DataConfig) -> list[list[RowT]]:
    """Make the batches of a pool of samples.

    Samples of like work share a batch, so that little is padded. Packed ones keep the order in
    which they were drawn: there a mixture of lengths fills sequences best.
    """
    if config.packing:
        return cut_batches(
            samples,
            config.batch_samples,
            config.batch_tokens,
            config.batch_tiles,
            config.max_tokens,
        )
    # The sort is stable, so equal samples keep the drawn order.
    like = sorted(samples, key=lambda row: len(row.row_tokens) * max(row.row_tokens))
    return cut_batches(like, config.batch_samples, config.batch_tokens, config.batch_tiles)


def cut_batches(
    samples: Sequence[RowT],
    batch_samples: int | None = None,
    batch_tokens: int | None = None,
    batch_tiles: int | None = None,
    sequence_tokens: int | None = None,
) -> list[list[RowT]]:
    """Cut samples into batches, in their order, each as large as every budget allows.

    A sample stays whole, and one that exceeds a budget alone is a batch alone.

    Args:
        batch_samples: samples of a batch.
        batch_tokens: text tokens of a batch with padding counted.
        batch_tiles: tiles of a batch.
        sequence_tokens: rows are packed into sequences of so many; None leaves them apart.
    """
    groups: list[list[RowT]] = []
    lengths: list[int] = []
    tiles = 0
    for sample in samples:
        lengths += sample.row_tokens
        tiles += sample.num_tiles
        fits = (
            bool(groups)
            and (batch_samples is None or len(groups[-1]) < batch_samples)
            and (batch_tiles is None or tiles <= batch_tiles)
            and (batch_tokens is None or _fits(lengths, batch_tokens, sequence_tokens))
        )
        if not fits:
            groups.append([])
            lengths, tiles = list(sample.row_tokens), sample.num_tiles
        groups[-1].append(sample)
    return groups


def pack_sequences(lengths: Sequence[int], sequence_tokens: int) -> list[list[int]]:
    """Pack documents into few sequences: the longest first, each where it first fits.

    Returns:
        For each sequence the indices of its documents.
    Raises:
        ValueError: a document is longer than `sequence_tokens`.
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > sequence_tokens:
            raise ValueError(f"{length} tokens do not fit into a sequence of {sequence_tokens}")
        place = next((place for place, left in enumerate(room) if length <= left), len(room))
        if place == len(room):
            sequences.append([])
            room.append(sequence_tokens)
        sequences[place].append(index)
        room[place] -= length
    return sequences


def padded_tokens(lengths: Sequence[int], sequence_tokens: int | None = None) -> int:
    """Return the text tokens of a batch of rows of these lengths, padding counted."""
    if sequence_tokens is None:
        return len(lengths) * max(lengths)
    sequences = pack_sequences(lengths, sequence_tokens)
    return len(sequences) * max(sum(lengths[i] for i in sequence) for sequence in sequences)


def _fits(lengths: Sequence[int], batch_tokens: int, sequence_tokens: int | None) -> bool:
    total = sum(lengths)
    if total > batch_tokens:
        return False
    # Any two sequences hold more than one's room together, or they would be one: at most half of
    # what first-fit packs is padding, so packing need not be tried here.
    if sequence_tokens is not None and 2 * total <= batch_tokens:
        return True
    return padded_tokens(lengths, sequence_tokens) <= batch_tokens
