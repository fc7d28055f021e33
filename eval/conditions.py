"""What may be done to a benchmark's pictures before they are shown: corruptions and attacks."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vlm.errors import UserError

CorruptionKind = Literal[
    "noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "blur",
    "pixelate",
    "jpeg",
    "brightness",
    "contrast",
    "rotation",
]
CORRUPTIONS: tuple[CorruptionKind, ...] = get_args(CorruptionKind)
SEVERITIES = (1, 2, 3, 4, 5)

LEVELS = 255  # steps between black and white in a picture of 8 bits

ConditionT = TypeVar("ConditionT", bound=BaseModel)


def _fraction(value: Any) -> Any:
    """`4/255` as a number; pydantic checks whatever else it is."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


Share = Annotated[float, BeforeValidator(_fraction), Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Corruption(_Section):
    """Every picture damaged as cameras, networks and scanners do it (eval/corruptions.py).

    severity: 1 is slight, 5 is heavy.
    seed: of what is drawn; the same picture is always damaged alike.
    """

    kind: CorruptionKind
    severity: int = Field(ge=1, le=5)
    seed: int = 0

    @property
    def label(self) -> str:
        """What tables call it: `blur 3`."""
        return f"{self.kind} {self.severity}" + (f", seed {self.seed}" if self.seed else "")


class _Attack(_Section):
    """What attacks on a picture have in common (eval/attacks.py).

    steps: of projected sign-gradient ascent.
    step_size: of a step, as a share of the range from black to white. None: 2.5 times what may
        change, divided by the steps, so that every pixel can reach its bounds from anywhere.
    target: the answer that the model is to be brought to. None: away from the right one.
    seed: of the start, and of a patch's place; an item is always attacked alike.
    """

    steps: PositiveInt
    step_size: Share | None = None
    target: str | None = None
    seed: int = 0

    @property
    def _label(self) -> str:
        """What a label ends in: all that was changed."""
        aim = "" if self.target is None else f", to {self.target!r}"
        seed = f", seed {self.seed}" if self.seed else ""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return f", {steps}{aim}{seed}"


class PgdAttack(_Attack):
    """Projected gradient descent within an L-infinity ball: no pixel changes by more than `eps`.

    eps: as a share of the range from black to white, `4/255`; pictures have 8 bits, so that it is
        rounded down to whole steps of 1/255.
    random_start: from a point that is drawn in the ball, else from the picture.

    Source: https://arxiv.org/abs/1706.06083, section 2.1.
    """

    kind: Literal["pgd"] = "pgd"
    eps: Share
    steps: PositiveInt = 10
    random_start: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 0 < self.eps and self.levels == 0:
            raise ValueError(f"eps is {self.eps:g}, less than the step of 8 bits, 1/255")
        return self

    @property
    def levels(self) -> int:
        """By how many of 255 steps a pixel may change."""
        return int(self.eps * LEVELS + 1e-6)

    @property
    def label(self) -> str:
        """What tables call it: `pgd 4/255, 10 steps`."""
        return f"pgd {self.levels}/255{self._label}"


class PatchAttack(_Attack):
    """A square somewhere in the picture that may hold anything; the rest stays as it is.

    share: of the picture's area; the place is drawn.

    Source of the idea: https://arxiv.org/abs/1712.09665. There one patch is learnt for many
    pictures; here each picture has its own, which is the stronger attack.
    """

    kind: Literal["patch"] = "patch"
    share: Share = 0.05
    steps: PositiveInt = 40

    @property
    def label(self) -> str:
        """What tables call it: `patch 5 %, 40 steps`."""
        return f"patch {100 * self.share:g} %{self._label}"


Attack = PgdAttack | PatchAttack
Condition = Corruption | PgdAttack | PatchAttack
ATTACKS: Mapping[str, type[PgdAttack] | type[PatchAttack]] = {
    "pgd": PgdAttack,
    "patch": PatchAttack,
}


def read_corruptions(words: str) -> list[Corruption]:
    """Corruptions by the words of a command line.

    >>> [corruption.label for corruption in read_corruptions("blur:3")]
    ['blur 3']

    Args:
        words: `KIND:SEVERITY`, `KIND` for all five, `all` for all kinds; `,seed=N` may follow.
    Raises:
        UserError: there is no such kind or severity.
    """
    place, *settings = words.split(",")
    kind, colon, severity = place.partition(":")
    if kind != "all" and kind not in CORRUPTIONS:
        raise UserError(f"no corruption {kind!r}; there are all, {', '.join(CORRUPTIONS)}")
    return [
        _validated(
            Corruption,
            words,
            {"kind": name, "severity": level, **_read_settings(words, settings)},
        )
        for name in (CORRUPTIONS if kind == "all" else (kind,))
        for level in ((severity,) if colon else SEVERITIES)
    ]


def read_attack(words: str) -> Attack:
    """An attack by the words of a command line.

    >>> read_attack("pgd:eps=4/255,steps=20").label
    'pgd 4/255, 20 steps'

    Args:
        words: `KIND:SETTING=VALUE,...` with the fields of `PgdAttack` or `PatchAttack`.
    Raises:
        UserError: there is no such kind, or a setting is wrong.
    """
    kind, _, settings = words.partition(":")
    if kind not in ATTACKS:
        raise UserError(f"no attack {kind!r}; there are {', '.join(ATTACKS)}")
    return _validated(ATTACKS[kind], words, _read_settings(words, settings.split(",")))


def read_conditions(corruptions: Sequence[str], attacks: Sequence[str]) -> list[Condition]:
    """What is done to the pictures, one thing a time, by the words of a command line.

    Raises:
        UserError: one is wrong, see `read_corruptions` and `read_attack`, or there twice.
    """
    read: list[Condition] = [each for words in corruptions for each in read_corruptions(words)]
    read += [read_attack(words) for words in attacks]
    labels = [condition.label for condition in read]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UserError(f"the condition {twice[0]!r} is asked for twice")
    return read


def _read_settings(words: str, settings: Sequence[str]) -> dict[str, str]:
    read = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals and setting:
            raise UserError(f"{words!r}: {setting!r} is not of the form name=value")
        if equals:
            read[name.strip()] = value.strip()
    return read


def _validated(kind: type[ConditionT], words: str, settings: Mapping[str, Any]) -> ConditionT:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{words!r}: {where + ': ' if where else ''}{message}") from None
