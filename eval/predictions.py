"""The predictions file: what a model said, kept so that a killed evaluation goes on.

The first line has the settings that predictions depend on, each further line a prediction.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm.errors import UserError

FORMAT = "vlm-predictions-1"


class AttackFacts(BaseModel):
    """What an attack on an item's pictures came to.

    distance: the largest change of a pixel, as a share of the range from black to white (L-inf).
    loss_before, loss: of the right answer, or of the target, on the picture and after the attack;
        see `eval.attacks.perturb`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    distance: float
    loss_before: float
    loss: float


class Prediction(BaseModel):
    """What a model said to an item, before any rule reads it.

    text, follow_ups: as written.
    logprobs, num_tokens: of each choice: natural logarithms, summed over its tokens, and how many
        those are; of a text, where perplexity is measured.
    images: the SHA-256 of each picture that was shown.
    cut: whether the prompt was too long for the model and was shortened; see `eval.fitting`.
    attack: what was done to them, if they were attacked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str = ""
    follow_ups: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()
    images: tuple[str, ...] = ()
    cut: bool = False
    attack: AttackFacts | None = None

    def to_line(self) -> str:
        """One line of JSON, the same for equal predictions."""
        return self.model_dump_json(exclude_defaults=True) + "\n"


class PredictionFile:
    """A predictions file that is written while a model answers.

    Args:
        settings: what predictions depend on; a file that was begun with others is refused.
        part: the number of this process and of all, where several write parts of their own.
    Raises:
        UserError: the file was begun with other settings, or is none of ours.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        rank, num_ranks = part
        own = path if num_ranks == 1 else _part_path(path, rank, num_ranks)
        self.known: dict[str, Prediction] = {}
        for found in [path, *_part_paths(path)]:
            if found.exists():
                self.known |= self._read(found)
        own.parent.mkdir(parents=True, exist_ok=True)
        if own.exists():
            _cut_to_whole_lines(own)
        new = not own.exists() or own.stat().st_size == 0
        self._file = own.open("a", encoding="utf-8")
        if new:
            self._file.write(_header(self.settings))
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add predictions; they are on the disk when this returns."""
        for prediction in predictions:
            self._file.write(prediction.to_line())
            self.known[prediction.id] = prediction
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End writing; what is there stays."""
        self._file.close()

    def complete(self, ids: Sequence[str]) -> list[Prediction]:
        """Put the parts of all processes together, in the order of the items.

        An evaluation that was killed and went on leaves the same bytes as one that was not.
        """
        self.close()
        parts = _part_paths(self.path)
        for part in parts:
            self.known |= self._read(part)
        ordered = [self.known[item_id] for item_id in ids]
        content = _header(self.settings) + "".join(p.to_line() for p in ordered)
        if self.path.exists() and self.path.read_text("utf-8") == content:
            return ordered
        temporary = self.path.with_name(f".{self.path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        for part in parts:
            part.unlink()
        return ordered

    def completed(self, ids: Sequence[str]) -> list[Prediction]:
        """What another process has put together, in the order of the items."""
        known = self._read(self.path)
        return [known[item_id] for item_id in ids]

    def _read(self, path: Path) -> dict[str, Prediction]:
        settings, predictions = read_predictions(path)
        changed = _differences(settings, self.settings)
        if changed:
            raise UserError(
                f"{path} was begun with other settings: {'; '.join(changed)}; go on with the same, "
                "write to another --out, or ask all again with --fresh"
            )
        return {prediction.id: prediction for prediction in predictions}


def discard(path: Path) -> None:
    """Remove a predictions file and the parts of it that processes wrote."""
    for old in [path, *_part_paths(path)]:
        old.unlink(missing_ok=True)


def read_predictions(path: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """Read the settings and the predictions of a file; a last line that was cut off is left out.

    Raises:
        UserError: it is no predictions file of ours, or a line is damaged.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    whole = lines[:-1]
    if not whole:
        return {}, []
    try:
        header = json.loads(whole[0])
        assert header["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path} is no predictions file of `vlm eval`") from None
    predictions = []
    for number, line in enumerate(whole[1:], start=2):
        try:
            predictions.append(Prediction.model_validate_json(line))
        except ValidationError as error:
            raise UserError(
                f"{path}:{number} is no prediction: {error.errors()[0]['msg']}"
            ) from None
    return header["settings"], predictions


def _header(settings: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "settings": settings}, ensure_ascii=False) + "\n"


def _differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """`name was A, is B` of each setting that differs; nothing of a file without settings."""
    if not found:
        return []
    differing = []
    for name in {**wanted, **found}:
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            differing += _differences(old, new, f"{prefix}{name}.") if old else []
        elif old != new:
            differing.append(f"{prefix}{name} was {old!r}, is {new!r}")
    return differing


def _part_path(path: Path, rank: int, num_ranks: int) -> Path:
    return path.with_name(f"{path.name}.part-{rank}-of-{num_ranks}")


def _part_paths(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.part-*-of-*"))


def _cut_to_whole_lines(path: Path) -> None:
    """Remove a last line that a kill cut off."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
