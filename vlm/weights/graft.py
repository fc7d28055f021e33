"""Grafting: a Llama-shaped LLM's weights as our decoder's, tensor by tensor.

The LLM's layers keep their order and leave room for the cross-attention layers, which stay as they
were made: their gates are closed, so the decoder writes what the LLM writes.
Axes: `V` vocabulary, `D` width.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm.decoder.stack import Decoder
from vlm.errors import UserError
from vlm.weights.folder import check_same_config, listed, load_component, weight_files
from vlm.weights.llm import Llm, read_llm

EMBEDDINGS, HEAD = "embed_tokens.weight", "lm_head.weight"
# In older files: a table that follows from the configuration.
DERIVED_SUFFIX = ".rotary_emb.inv_freq"


def graft_llm(decoder: Decoder, folder: Path) -> tuple[str, ...]:
    """Load an LLM's weights into a decoder; return notes for the user, a sentence each.

    Rows of tokens that the LLM lacks start at the mean of its tokens' rows.

    Raises:
        UserError: the folder is not that of an LLM of the decoder's shape, or a tensor is missing,
            left over, or of another shape.
    """
    llm = read_llm(folder)
    check_same_config(decoder.config, llm.config, "model.decoder", folder)
    theirs = _read_tensors(folder)
    _check_tensors(decoder, llm, theirs, folder)
    names = source_names(decoder)
    tensors = {
        name: theirs[names[name]] if name in names else tensor
        for name, tensor in decoder.state_dict().items()
    }
    for name in {EMBEDDINGS, HEAD} & set(tensors):
        tensors[name] = _with_new_rows(tensors[name], len(decoder.get_parameter(name)), llm)
    load_component(decoder, tensors, "decoder", folder)
    layers = decoder.config.cross_attention_layers
    added = (
        f"decoder: {folder}, its layers as they are, and new cross-attention layers at "
        f"{', '.join(map(str, layers))} of {decoder.config.num_layers}"
    )
    return added, *llm.notes


def source_names(decoder: Decoder) -> dict[str, str]:
    """Map the names of the decoder's tensors that an LLM has to the LLM's names."""
    crossing = decoder.config.cross_attention_layers
    own = [layer for layer in range(decoder.config.num_layers) if layer not in crossing]
    names: dict[str, str] = {}
    for name in decoder.state_dict():
        part, _, rest = name.partition(".")
        if part == "lm_head":
            names[name] = name
        elif part != "layers":
            names[name] = f"model.{name}"
        else:
            layer, _, tensor = rest.partition(".")
            if int(layer) in own:
                names[name] = f"model.layers.{own.index(int(layer))}.{tensor}"
    return names


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read every tensor, under the name it has in a causal language model."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    if not name.endswith(DERIVED_SUFFIX):
                        # A model saved without its output layer leaves the prefix out.
                        prefix = "" if name.startswith(("model.", "lm_head.")) else "model."
                        tensors[prefix + name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors


def _check_tensors(decoder: Decoder, llm: Llm, theirs: dict[str, Tensor], folder: Path) -> None:
    """Check that names and shapes are exactly those of the LLM's configuration.

    A tied output layer that is saved beside the embeddings it is tied to is taken out.
    """
    names = source_names(decoder)
    if decoder.config.tie_embeddings and HEAD in theirs:
        if not torch.equal(theirs[HEAD], theirs.get(names[EMBEDDINGS], torch.empty(0))):
            raise UserError(
                f"{folder}: {HEAD} differs from {names[EMBEDDINGS]}, though config.json says "
                "tie_word_embeddings: true; set that to false, or remove the tensor"
            )
        del theirs[HEAD]
    expected = {
        names[name]: tensor.shape for name, tensor in decoder.state_dict().items() if name in names
    }
    for name in {names[EMBEDDINGS], HEAD} & set(expected):
        expected[name] = torch.Size((llm.num_rows, decoder.config.hidden_size))
    problems = []
    for name, shape in expected.items():
        if name not in theirs:
            problems.append(f"{name} is missing (needed: {list(shape)})")
        elif theirs[name].shape != shape:
            problems.append(f"{name} is {list(theirs[name].shape)}, needed: {list(shape)}")
    problems += [f"{name} has no place in the model" for name in theirs if name not in expected]
    if problems:
        raise UserError(
            f"the weights of {folder} are not those of its config.json: {listed(problems)}"
        )


def _with_new_rows(rows: Tensor, num_rows: int, llm: Llm) -> Tensor:
    """Return (num_rows, D): an LLM's (V, D), with the mean of its tokens' rows for new tokens.

    An LLM may have rows without a token, and new tokens then lie there; the rest of them stay.
    """
    first = min([len(rows), *llm.tokenizer.added_ids])
    extended = torch.empty(num_rows, rows.shape[1], dtype=torch.float32)
    extended[: len(rows)] = rows[:num_rows]
    new = [*llm.tokenizer.added_ids, *range(len(rows), num_rows)]
    extended[[index for index in new if index < num_rows]] = rows[:first].float().mean(dim=0)
    return extended
