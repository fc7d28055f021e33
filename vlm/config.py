"""The model's configuration, and strict loading of any configuration from YAML.

`load_config` reads a file into a frozen pydantic model. A section may be written out or be a path:
of another YAML file that holds it (`model: configs/model/tiny.yaml`), or of a folder of weights
whose shape it is (`decoder: PATH/TO/LLM`). Written out, it may begin with such a path (`from:
PATH`) and change some keys. Dotted overrides (`model.decoder.hidden_size=64`) are applied after
such paths have been read in. Whatever is wrong, a key, a type, a file, is reported in one line that
names the file and the dotted path.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from inspect import isclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from encoders.config import VisionConfig
from projector.config import ProjectorConfig
from vlm.decoder.config import DecoderConfig
from vlm.errors import UserError

# The folder that holds `configs/`: a checkout, or site-packages.
PACKAGE_ROOT = Path(__file__).resolve().parent.parent
# What makes a folder one of weights; the second is open_clip's.
WEIGHTS_CONFIG_FILES = ("config.json", "open_clip_config.json")
# The key of a section that holds the path of what the section's other keys change.
BASE_KEY = "from"
MAX_PROBLEMS_SHOWN = 3
MAX_VALUE_CHARACTERS = 60
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
# Which unquoted words are not text. Unlike PyYAML's rules (YAML 1.1), 1e-4 is a float here, while
# yes, 010, 12:30 and dates stay text.
PLAIN_SCALARS = {
    None: [
        ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$")),
        ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")),
        ("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")),
        ("tag:yaml.org,2002:float", FLOAT),
        ("tag:yaml.org,2002:merge", re.compile(r"<<$")),
    ]
}
# When writing, PyYAML quotes what its own rules would not read as text; ours add floats.
QUOTED_SCALARS = {
    **yaml.SafeDumper.yaml_implicit_resolvers,
    None: [("tag:yaml.org,2002:float", FLOAT)],
}

Config = TypeVar("Config", bound=BaseModel)
# The parts of a dotted path, ("model", "decoder", "hidden_size"); integers index lists.
Keys = tuple[str | int, ...]
# What set each part of a configuration: a file, or an override.
Origins = dict[Keys, str]
# The types that a value may have: a union's members, or one type.
Types = tuple[Any, ...]


class VLMConfig(BaseModel):
    """A whole model: vision encoder, projector, decoder, and which images a text token sees.

    `image_visibility`: `latest` lets a token see the last image before it together with those
    directly before that one (Llama 3.2's rule); `all_previous` every image before it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vision: VisionConfig
    projector: ProjectorConfig
    decoder: DecoderConfig
    image_visibility: Literal["latest", "all_previous"] = "latest"


def load_config(cls: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration of type `cls` from a YAML file; without one, from overrides alone.

    A path that is named here or inside a configuration is looked for from the working folder,
    then from the including file's folder, then beside the installed packages.

    Args:
        overrides: `dotted.key=value`, the value in YAML; a later one wins.
    Raises:
        UserError: a missing or unreadable file, broken YAML, a repeated or unknown key, a value
            of the wrong type, or one that the configuration's own checks refuse.
    """
    origins: Origins = {(): "the command line"}
    data: Any = {}
    if path is not None:
        file = _find_path(str(path), [Path()])
        origins[()] = str(file)
        data = _include(_read_path(file, cls), (cls,), (), file.parent, origins)
    for override in overrides:
        _apply_override(data, override, cls, origins)
    text = json.dumps(data, default=str)
    try:
        # JSON's strict mode takes lists as tuples and strings as paths, but never "5" as 5.
        return cls.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(_describe(error, cls, json.loads(text), origins)) from None


def dump_config(config: BaseModel) -> str:
    """Return the YAML of a configuration, defaults included; `load_config` reads it back equal."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars, and no repeated keys."""

    yaml_implicit_resolvers: Any = PLAIN_SCALARS

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: Any = QUOTED_SCALARS


def _find_path(name: str, folders: Sequence[Path], needed_by: str = "") -> Path:
    """Find a YAML file, or a folder of weights."""
    candidates = [folder / name for folder in [*folders, PACKAGE_ROOT]]
    for candidate in candidates:
        if candidate.is_file() or any((candidate / f).is_file() for f in WEIGHTS_CONFIG_FILES):
            return candidate
    for candidate in candidates:
        if candidate.is_dir():
            raise UserError(f"{needed_by}the folder {candidate} has no {WEIGHTS_CONFIG_FILES[0]}")
        neighbours = [file.name for file in candidate.parent.glob("*.yaml")]
        near = get_close_matches(candidate.name, neighbours, n=1)
        if near:
            raise UserError(
                f"{needed_by}no file {name!r}; did you mean {candidate.parent / near[0]}?"
            )
    places = ", ".join(dict.fromkeys(str(candidate.parent) for candidate in candidates))
    raise UserError(f"{needed_by}no file or folder {name!r} (looked in {places})")


def _read_path(path: Path, section: type[BaseModel], needed_by: str = "") -> dict[str, Any]:
    if path.is_file():
        return _read_mapping(path)
    from vlm.weights.sections import read_section  # needs this module, and transformers

    try:
        return read_section(section, path).model_dump(mode="json")
    except UserError as error:
        raise UserError(f"{needed_by}{error}") from error


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text: {error}") from None
    value = _parse_yaml(text, str(file))
    if not isinstance(value, dict | None):
        raise UserError(f"{file}: must hold keys and values, not {_shown(value)}")
    return value or {}


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = " ".join(filter(None, [error.context, error.problem]))
        raise UserError(f"{origin}, line {line}: {problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: {' '.join(str(error).split())}") from None


def _include(value: Any, types: Types, keys: Keys, folder: Path, origins: Origins) -> Any:
    """Replace every path that stands for a section by what its file or folder holds.

    `value` is found at `keys`, may have `types`, and stands in a file of `folder`.
    """
    found: Mapping[str, Any] | None = None
    if isinstance(value, dict) and BASE_KEY in value and _sections(types):
        changes = {key: child for key, child in value.items() if key != BASE_KEY}
        origins.update({(*keys, key): _origin(keys, origins) for key in changes})
        found = _read_base(value[BASE_KEY], types, keys, folder, origins)
        value = changes
    elif isinstance(value, str) and _sections(types) and not {str, Path} & set(types):
        found, value = _read_base(value, types, keys, folder, origins), {}
    children: Mapping[Any, Any]
    if isinstance(value, dict):
        children = value
    elif isinstance(value, list):
        children = dict(enumerate(value))
    else:
        return value
    filled = {
        key: _include(child, _types_below(types, key), (*keys, key), folder, origins)
        for key, child in children.items()
    }
    if found is not None:
        return _merged(found, filled)
    return filled if isinstance(value, dict) else list(filled.values())


def _read_base(
    name: Any, types: Types, keys: Keys, folder: Path, origins: Origins
) -> Mapping[str, Any]:
    """Return what the path `name`, which stands for the section at `keys`, holds."""
    needed_by = f"{_origin(keys, origins)}: {_dotted(keys)}: "
    if not isinstance(name, str):
        raise UserError(f"{needed_by}{BASE_KEY} must be a path, not {_shown(name)}")
    path = _find_path(name, [Path(), folder], needed_by)
    origins[keys] = str(path)
    data = _read_path(path, _sections(types)[0], needed_by)
    included: Mapping[str, Any] = _include(data, types, keys, path.parent, origins)
    return included


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with some keys changed, in sections below too."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _apply_override(data: Any, override: str, cls: type[BaseModel], origins: Origins) -> None:
    """Set one `dotted.key=value` in `data`, in place."""
    dotted, equals, text = override.partition("=")
    if not dotted or not equals:
        raise UserError(f"override {override!r} is not of the form dotted.key=value")
    origin = f"override {dotted!r}"
    *parents, last = dotted.split(".")
    types: Types = (cls,)
    keys: Keys = ()
    for part in parents:
        key = _checked_key(part, data, types, keys, cls, origin)
        if isinstance(data, dict) and data.get(key) is None:
            data[key] = _default_section(types, key)
        data, types, keys = data[key], _types_below(types, key), (*keys, key)
    key = _checked_key(last, data, types, keys, cls, origin)
    types, keys = _types_below(types, key), (*keys, key)
    for below in [known for known in origins if known[: len(keys)] == keys]:
        del origins[below]
    origins[keys] = origin
    data[key] = _include(_parse_yaml(text, origin), types, keys, Path(), origins)


def _checked_key(
    part: str, data: Any, types: Types, keys: Keys, cls: type[BaseModel], origin: str
) -> str | int:
    """Return `part` of an override as a key of `data`, which is found at `keys`."""
    if isinstance(data, list):
        if part.isdigit() and int(part) < len(data):
            return int(part)
        raise UserError(f"{origin}: {_dotted(keys)} has {len(data)} items, and no {part!r}")
    if not isinstance(data, dict):
        raise UserError(f"{origin}: {_dotted(keys)} is {_shown(data)}, not a section")
    if _sections(types) and not _types_below(types, part):
        raise UserError(f"{origin}: {_unknown_key((*keys, part), cls)}")
    return part


def _default_section(types: Types, key: str | int) -> Any:
    """Return what a section holds when no file sets it: overrides change single keys of that."""
    for section in _sections(types):
        default = section.model_fields[str(key)].get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            return default.model_dump(mode="json")
    return {}


def _members(annotation: Any) -> Types:
    """Return a union's members, or the annotation alone, without `Annotated`'s extras."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _members(arguments[0])
    if origin in (Union, UnionType):
        return tuple(member for argument in arguments for member in _members(argument))
    return (annotation,)


def _sections(types: Types) -> list[type[BaseModel]]:
    return [kind for kind in types if isclass(kind) and issubclass(kind, BaseModel)]


def _types_below(types: Types, key: str | int) -> Types:
    """Return the types that a value under `key` may have; none if there is no such key."""
    below: list[Any] = []
    for kind in types:
        origin, arguments = get_origin(kind), get_args(kind)
        if isclass(kind) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(key))
            below += _members(field.annotation) if field else ()
        elif isclass(origin) and issubclass(origin, Mapping):
            below += _members(arguments[1])
        elif isclass(origin) and issubclass(origin, Sequence):
            below += [member for argument in arguments for member in _members(argument)]
    return tuple(below)


def _describe(error: ValidationError, cls: type[BaseModel], data: Any, origins: Origins) -> str:
    """Return the first problems in one line, unknown keys first: they explain missing ones."""
    found: dict[Keys, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "default_factory_not_called":
            continue  # a default that follows from a field which is itself wrong
        found.setdefault(_keys_of(detail, data), []).append(detail)
    ordered = sorted(found.items(), key=lambda item: item[1][0]["type"] != "extra_forbidden")
    shown = [
        f"{_origin(keys, origins)}: {_problem(keys, details, cls)}"
        for keys, details in ordered[:MAX_PROBLEMS_SHOWN]
    ]
    hidden = len(ordered) - len(shown)
    return "; ".join(shown) + (f"; and {hidden} more" if hidden else "")


def _problem(keys: Keys, details: list[ErrorDetails], cls: type[BaseModel]) -> str:
    """Say what is wrong at `keys`; a union has a detail for each of its members."""
    name, kind, message = _dotted(keys), details[0]["type"], details[0]["msg"]
    if kind == "extra_forbidden":
        return _unknown_key(keys, cls)
    if kind == "missing":
        return f"{name} is missing"
    if kind in ("value_error", "assertion_error"):
        reason = message.partition(", ")[2]
        return f"{name}: {reason}" if name else reason
    got = _shown(details[0]["input"])
    if kind == "model_type":
        return f"{name} must be a section, or the path of a YAML file that holds it, not {got}"
    prefix = "Input should be "
    expected = [detail["msg"].removeprefix(prefix) for detail in details]
    if not message.startswith(prefix):
        return f"{name}: {message[:1].lower()}{message[1:]}, in {got}"
    return f"{name} must be {' or '.join(expected)}, not {got}"


def _keys_of(detail: ErrorDetails, data: Any) -> Keys:
    """Return where in `data` a problem is: pydantic's location also names members of unions."""
    keys: list[str | int] = []
    *above, last = detail["loc"] or [""]
    for part in [*above, last]:
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        keys.append(part)
    return (*keys, last) if detail["type"] == "missing" else tuple(keys)


def _unknown_key(keys: Keys, cls: type[BaseModel]) -> str:
    """Say that a key is unknown, and which one is nearest: beside it, or else anywhere."""
    types: Types = (cls,)
    for key in keys[:-1]:
        types = _types_below(types, key)
    beside = {name: (*keys[:-1], name) for kind in _sections(types) for name in kind.model_fields}
    anywhere = {str(path[-1]): path for path in _all_keys((cls,), ())}
    for candidates in (beside, anywhere):
        near = get_close_matches(str(keys[-1]), candidates, n=1)
        if near:
            return f"unknown key {_dotted(keys)}; did you mean {_dotted(candidates[near[0]])}?"
    return f"unknown key {_dotted(keys)}; the keys here are {', '.join(beside)}"


def _all_keys(types: Types, above: Keys) -> Iterator[Keys]:
    for section in _sections(types):
        for name in section.model_fields:
            keys = (*above, name)
            yield keys
            yield from _all_keys(_types_below((section,), name), keys)


def _origin(keys: Keys, origins: Origins) -> str:
    return next(origins[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in origins)


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > MAX_VALUE_CHARACTERS:
        return text[:MAX_VALUE_CHARACTERS] + "..."
    return text
