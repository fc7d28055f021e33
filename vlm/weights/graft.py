"""Grafting: a Llama-shaped LLM's weights as our decoder's, tensor by tensor.

The LLM's layers keep their order and leave room for the cross-attention layers, which stay as they
were made: their gates are closed, so the decoder writes what the LLM writes.
Axes: `V` vocabulary, `D` width.
"""

from pathlib import Path

import torch
from torch import Tensor

from vlm.decoder.config import DecoderConfig
from vlm.decoder.stack import Decoder
from vlm.errors import UserError
from vlm.weights.comparison import listed, mismatches
from vlm.weights.folder import check_same_config
from vlm.weights.llm import Llm, read_llm
from vlm.weights.mllama_folder import FLOATS
from vlm.weights.tensors import StoredTensor, read_tensors, stored_tensors

EMBEDDINGS, HEAD = "embed_tokens.weight", "lm_head.weight"
# Tables in older files that follow from the configuration.
DERIVED_SUFFIX = ".rotary_emb.inv_freq"


def graft_llm(decoder: Decoder, folder: Path) -> tuple[str, ...]:
    """Load an LLM's weights into a decoder; return notes for the user, a sentence each.

    Rows of tokens that the LLM lacks start at the mean of the rows of its own.

    Raises:
        UserError: the folder is not that of an LLM of the decoder's shape, or a tensor is missing,
            left over, or of another shape or dtype.
    """
    llm = read_llm(folder)
    stored = _stored(decoder, folder, llm)
    found = _read(folder, stored, decoder.config.tie_embeddings)
    ours = decoder.state_dict()
    for name in ours:
        theirs = source_name(name, decoder.config)
        if theirs is not None:
            tensor = found.pop(theirs)
            grown = name in (EMBEDDINGS, HEAD)
            ours[name].copy_(_with_new_rows(tensor, len(ours[name]), llm) if grown else tensor)
    return _notes(decoder.config, folder, llm)


def check_llm(decoder: Decoder, folder: Path) -> tuple[str, ...]:
    """Check by the headers of its files that an LLM fits a decoder; return `graft_llm`'s notes.

    Raises:
        UserError: as `graft_llm`.
    """
    llm = read_llm(folder)
    _stored(decoder, folder, llm)
    return _notes(decoder.config, folder, llm)


def source_name(name: str, config: DecoderConfig) -> str | None:
    """Return what an LLM calls a tensor of the decoder; None for those of cross-attention."""
    part, _, rest = name.partition(".")
    if part == "lm_head":
        return name
    if part != "layers":
        return f"model.{name}"
    layer, _, tensor = rest.partition(".")
    if int(layer) in config.cross_attention_layers:
        return None
    before = sum(crossing < int(layer) for crossing in config.cross_attention_layers)
    return f"model.layers.{int(layer) - before}.{tensor}"


def _notes(config: DecoderConfig, folder: Path, llm: Llm) -> tuple[str, ...]:
    return (
        f"decoder: the LLM of {folder}, with new cross-attention layers at "
        f"{', '.join(map(str, config.cross_attention_layers))}",
        *llm.notes,
    )


def _stored(decoder: Decoder, folder: Path, llm: Llm) -> dict[str, StoredTensor]:
    """Find an LLM's tensors after checking that they are exactly those of its configuration.

    A tied output layer may be among them.
    """
    config = decoder.config
    check_same_config(config, llm.config, "model.decoder", folder)
    ours = decoder.state_dict()
    names = {name: source_name(name, config) for name in ours}
    shapes = {theirs: tuple(ours[name].shape) for name, theirs in names.items() if theirs}
    for rows in {f"model.{EMBEDDINGS}", HEAD} & set(shapes):
        shapes[rows] = llm.num_rows, config.hidden_size
    # A model saved without its output layer leaves the prefix out.
    found = {
        name if name.startswith(("model.", "lm_head.")) else f"model.{name}": tensor
        for name, tensor in stored_tensors(folder).items()
        if not name.endswith(DERIVED_SUFFIX)
    }
    needed = {name: t for name, t in found.items() if not (config.tie_embeddings and name == HEAD)}
    problems = mismatches(shapes, {name: tensor.shape for name, tensor in needed.items()})
    problems += [
        f"{name} is of dtype {tensor.dtype}, needed: {', '.join(FLOATS)}"
        for name, tensor in needed.items()
        if tensor.dtype not in FLOATS
    ]
    if problems:
        raise UserError(f"the weights of {folder} do not match its config.json: {listed(problems)}")
    return found


def _read(folder: Path, stored: dict[str, StoredTensor], tied: bool) -> dict[str, Tensor]:
    """Read an LLM's tensors; a tied output layer must be the embedding, and is left out."""
    tensors = read_tensors(stored)
    head = tensors.pop(HEAD, None) if tied else None
    if head is not None and not torch.equal(head, tensors[f"model.{EMBEDDINGS}"]):
        raise UserError(
            f"{folder}: {HEAD} differs from model.{EMBEDDINGS}, though tie_word_embeddings is "
            "true in config.json; set it to false, or remove the tensor"
        )
    return tensors


def _with_new_rows(rows: Tensor, num_rows: int, llm: Llm) -> Tensor:
    """Return (num_rows, D) float32: an LLM's (V, D), with the mean of its tokens for new tokens.

    An LLM may have rows that belong to no token. New tokens come to lie there first; what is left
    of them stays.
    """
    first_new = min([len(rows), *llm.tokenizer.added_ids])
    is_new = torch.zeros(num_rows, dtype=torch.bool)
    is_new[[index for index in llm.tokenizer.added_ids if index < num_rows]] = True
    is_new[len(rows) :] = True
    extended = torch.empty(num_rows, rows.shape[1])
    extended[: len(rows)] = rows
    extended[is_new] = extended[:first_new].mean(dim=0)
    return extended
