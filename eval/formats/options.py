"""A reader's own settings, checked."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm.errors import UserError


class Options(BaseModel):
    """No settings; readers that have some add them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


OptionsT = TypeVar("OptionsT", bound=Options)


def read_options(cls: type[OptionsT], options: Mapping[str, Any]) -> OptionsT:
    """A benchmark's `options` as settings of type `cls`.

    Raises:
        UserError: one is unknown or of the wrong type.
    """
    try:
        return cls.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("options", *first["loc"])))
        known = ", ".join(cls.model_fields) or "none"
        raise UserError(f"{where}: {first['msg']}; this format's options: {known}") from None
