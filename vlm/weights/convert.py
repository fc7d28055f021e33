"""Folders of transformers' Mllama to ours and back.

Both hold the same tensors under other names, so a conversion copies bytes: every bit and every
dtype is kept, and memory does not grow with the model. All is checked before the first byte is
written, to a folder beside the one asked for, which takes its name when it is whole.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.chat.files import GENERATION_FILE
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.model import tensor_shapes
from vlm.provenance import commit, library_versions
from vlm.weights.comparison import listed, mismatches
from vlm.weights.folder import (
    COMPONENTS,
    CONFIG_FILE,
    FORMAT,
    MLLAMA,
    PROVENANCE_FILE,
    FolderConfig,
    flush_files,
    folder_tensors,
    read_folder_config,
    read_provenance,
    write_json,
)
from vlm.weights.image_settings import SETTINGS_FILE, image_settings
from vlm.weights.mllama import config_to_mllama
from vlm.weights.mllama_folder import OUTPUT_LAYER
from vlm.weights.mllama_names import mllama_name
from vlm.weights.tensors import StoredTensor, copy_sharded

STAGE = "from-hf"
EMBEDDING = "decoder.embed_tokens.weight"
# transformers' words for safetensors' dtypes.
DTYPE_WORDS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def from_hf(source: Path, out: Path, origin: Mapping[str, Any]) -> FolderConfig:
    """Write a model folder of ours from a transformers Mllama folder.

    Args:
        out: must not exist, or be empty.
        origin: what `provenance.json` says of the source: its folder, or id and commit.
    Returns:
        what the new folder holds.
    Raises:
        UserError: the source is no such folder, damaged, or computes what we cannot; `out` holds
            something, or cannot be written. Nothing is left there then.
    """
    found = read_folder_config(source)
    if found.format != MLLAMA:
        raise UserError(f"{source} is a model folder of ours already (stage {found.stage})")
    config = found.model_copy(update={"format": FORMAT, "stage": STAGE})
    tensors = folder_tensors(source, found)
    processor = Processor.from_folder(source, found.model.vision)
    processor.tokenizer.check_fits(found.model.decoder.num_embeddings)
    with new_folder(out, tensors) as folder:
        copy_sharded(by_file(tensors), folder)
        processor.save(folder)
        write_json(folder / PROVENANCE_FILE, _provenance(STAGE, {"source": dict(origin)}))
        write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
    return config


def to_hf(source: Path, out: Path) -> None:
    """Write a folder for transformers' `MllamaForConditionalGeneration` from one of ours.

    A tied output layer becomes a copy of the embedding's rows, since Mllama always has its own.

    Args:
        out: must not exist, or be empty.
    Raises:
        UserError: the source is not a whole model of ours, or one that Mllama cannot express;
            `out` holds something, or cannot be written. Nothing is left there then.
    """
    found = read_folder_config(source)
    if found.format == MLLAMA:
        raise UserError(f"{source} is a transformers folder already")
    missing = [component for component in COMPONENTS if component not in found.components]
    if missing:
        raise UserError(f"{source} (stage {found.stage}) has no {' and no '.join(missing)}")
    processor = Processor.from_folder(source, found.model.vision)
    tensors = checked_tensors(source, found)
    config = _mllama_config(found.model, processor, tensors)
    tokenizer = processor.tokenizer
    tokenizer.check_fits(found.model.decoder.num_embeddings)
    if found.model.decoder.tie_embeddings:
        tensors[OUTPUT_LAYER] = tensors[EMBEDDING].first_rows(found.model.decoder.vocab_size)
    named = {str(mllama_name(name)): tensor for name, tensor in tensors.items()}
    generation = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.end_ids),
        "pad_token_id": tokenizer.pad_id,
        **tokenizer.generation,
    }
    origin = {"source": {"folder": str(source), "provenance": read_provenance(source)}}
    with new_folder(out, named) as folder:
        copy_sharded(by_file(named), folder)
        processor.save(folder)
        write_json(folder / GENERATION_FILE, generation)
        write_json(folder / SETTINGS_FILE, image_settings(found.model.vision))
        write_json(folder / PROVENANCE_FILE, _provenance("to-hf", origin))
        write_json(folder / CONFIG_FILE, config)


def checked_tensors(source: Path, found: FolderConfig) -> dict[str, StoredTensor]:
    """The tensors of a folder of ours, after accounting for every one."""
    tensors = folder_tensors(source, found)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    problems = mismatches(tensor_shapes(found.model), shapes)
    if problems:
        raise UserError(f"{source} does not match its {CONFIG_FILE}: {listed(problems)}")
    return tensors


def _mllama_config(
    model: VLMConfig, processor: Processor, tensors: Mapping[str, StoredTensor]
) -> dict[str, Any]:
    """The `config.json` of transformers' folder.

    Raises:
        UserError: names what Mllama cannot express.
    """
    tokenizer = processor.tokenizer
    if tokenizer.bos_id is None:
        raise UserError("transformers' Mllama needs a token that begins a text, a bos_token")
    untied = model.decoder.model_copy(update={"tie_embeddings": False})
    dtypes = [tensor.dtype for tensor in tensors.values()]
    return config_to_mllama(
        model.model_copy(update={"decoder": untied}),
        image_token_id=tokenizer.image_id,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.end_ids,
        pad_id=tokenizer.pad_id,
        dtype=DTYPE_WORDS[max(DTYPE_WORDS, key=dtypes.count)],
    )


def by_file(tensors: Mapping[str, StoredTensor]) -> list[dict[str, StoredTensor]]:
    """The tensors of each file, in the order of their bytes."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].file, item[1].start))
    files: dict[Path, dict[str, StoredTensor]] = {}
    for name, tensor in ordered:
        files.setdefault(tensor.file, {})[name] = tensor
    return list(files.values())


def _provenance(stage: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": stage,
        "seed": None,
        **facts,
        "commit": commit(),
        "versions": library_versions(),
    }


@contextmanager
def new_folder(out: Path, tensors: Mapping[str, StoredTensor]) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its name at the end, or vanishes.

    Raises:
        UserError: `out` holds something, or the tensors have no room there.
    """
    _check_free(out)
    created = [parent for parent in out.absolute().parents if not parent.exists()]
    temporary = out.absolute().parent / f".{out.name}.{os.getpid()}.writing"
    num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(temporary.parent).free
        if free < num_bytes:
            raise OSError(f"{num_bytes:,} bytes are needed, {free:,} are free")
        temporary.mkdir()
        yield temporary
        flush_files(temporary)
        temporary.replace(out)
        _flush_folder(out.absolute().parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in created:
            if parent.is_dir():
                parent.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"{out} ({num_bytes:,} bytes) cannot be written: {reason}") from error
        raise


def _check_free(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder, or empty it")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists and is no folder; choose another name")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
