"""A transformers Mllama folder (Llama 3.2 Vision): what it is, as our configuration and tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.chat.files import TOKENIZER_FILE, read_json_object
from vlm.chat.tokenizer import IMAGE_TOKEN
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.model import tensor_shapes
from vlm.weights.comparison import listed, mismatches
from vlm.weights.image_settings import apply_image_settings
from vlm.weights.mllama import config_from_mllama
from vlm.weights.mllama_names import mllama_name, our_name
from vlm.weights.tensors import StoredTensor, stored_tensors

MODEL_TYPE = "mllama"
ARCHITECTURE = "MllamaForConditionalGeneration"
OUTPUT_LAYER = "decoder.lm_head.weight"
# As safetensors calls them; others are quantised, and need their scales.
FLOATS = ("F32", "BF16", "F16")
DEFAULT_IMAGE_TOKEN_ID = 128256


def read_mllama_config(folder: Path, content: Mapping[str, Any]) -> VLMConfig:
    """Return our configuration of a Mllama folder.

    A folder whose `tie_word_embeddings` is true and that has no output layer is read as tied, as
    transformers 4 wrote it.

    Args:
        content: of its `config.json`.
    Raises:
        UserError: it is a part of such a model, computes what we cannot, or its image processor
            or tokenizer do not fit it.
    """
    architectures = content.get("architectures") or [ARCHITECTURE]
    if architectures != [ARCHITECTURE]:
        raise UserError(f"{folder} holds {architectures[0]}, needed: {ARCHITECTURE}")
    try:
        config = config_from_mllama(content)
        _check_image_token(folder, content)
        update: dict[str, Any] = {"vision": apply_image_settings(folder, config.vision)}
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    if content.get("text_config", {}).get("tie_word_embeddings"):
        tied = OUTPUT_LAYER not in _by_our_name(folder)[0]
        update["decoder"] = config.decoder.model_copy(update={"tie_embeddings": tied})
    return config.model_copy(update=update)


def mllama_tensors(folder: Path, config: VLMConfig) -> dict[str, StoredTensor]:
    """Find the tensors of a Mllama folder by our names, after accounting for every one.

    Raises:
        UserError: names what is missing, of another shape or dtype, or of no use.
    """
    found, unknown = _by_our_name(folder)
    needed = tensor_shapes(config)
    problems = mismatches(
        {
            found[name].name if name in found else str(mllama_name(name)): shape
            for name, shape in needed.items()
        },
        {tensor.name: tensor.shape for tensor in (*found.values(), *unknown)},
    )
    problems += [
        f"{tensor.name} is of dtype {tensor.dtype}, needed: {', '.join(FLOATS)}"
        for tensor in found.values()
        if tensor.dtype not in FLOATS
    ]
    if problems:
        raise UserError(f"{folder} does not match its config.json: {listed(problems)}")
    return found


def _by_our_name(folder: Path) -> tuple[dict[str, StoredTensor], list[StoredTensor]]:
    """The folder's tensors by our names, and those that have none."""
    found: dict[str, StoredTensor] = {}
    unknown = []
    for name, tensor in stored_tensors(folder).items():
        ours = our_name(name)
        if ours is None:
            unknown.append(tensor)
        elif ours in found:
            raise UserError(f"{folder} holds one tensor twice, as {found[ours].name} and {name}")
        else:
            found[ours] = tensor
    return found, unknown


def _check_image_token(folder: Path, content: Mapping[str, Any]) -> None:
    """Check that the tokenizer has `<|image|>` where the model looks for it."""
    if not (folder / TOKENIZER_FILE).is_file():
        return  # the tokenizer's own reader says what is needed
    needed = content.get("image_token_index", content.get("image_token_id", DEFAULT_IMAGE_TOKEN_ID))
    added = read_json_object(folder / TOKENIZER_FILE).get("added_tokens", [])
    ids = {token.get("content"): token.get("id") for token in added}
    if ids.get(IMAGE_TOKEN) != needed:
        raise UserError(
            f"the model has {IMAGE_TOKEN} at id {needed}, its {TOKENIZER_FILE} at "
            f"{ids.get(IMAGE_TOKEN, 'none')}; take both files from the same model"
        )
