"""The files of a tokenizer folder, by transformers' names, and how text and JSON are read."""

import json
from pathlib import Path
from typing import Any

from vlm.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"


def read_utf8(path: Path) -> str:
    """Read a text file that must be UTF-8."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds a {type(content).__name__}, needed: an object")
    return content
