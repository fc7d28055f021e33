"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
MAX_MESSAGE_CHARS = 500
# Names that stand for alternatives in the paths of pydantic's complaints, see vlm/server/schema.py:
# anywhere, and for an item of a list.
ALTERNATIVES = ("as_text", "as_parts", "as_list")
ITEM_ALTERNATIVES = ("text", "image_url")


class ErrorBody(BaseModel):
    """What went wrong.

    param: the part of the request that is wrong, as `messages.0.content`.
    code: a name for programs.
    """

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorBody


class ApiError(Exception):
    """A request that is refused, with what the client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> ErrorReply:
        """What the client reads."""
        kind = TYPES.get(self.status, "invalid_request_error")
        param = None if self.param is None else _printable(self.param)
        error = ErrorBody(message=_printable(self.message), type=kind, param=param, code=self.code)
        return ErrorReply(error=error)

    def response(self) -> JSONResponse:
        """The HTTP response."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body.model_dump(), self.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Give every refusal of the framework's the same form."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _validation_error(error.errors()).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        response = ApiError(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    async def bug(request: Request, error: Exception) -> JSONResponse:
        return internal_error().response()

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, bug)


def internal_error() -> ApiError:
    """A fault of ours; its traceback is in the log."""
    return ApiError(500, "the server failed to answer this request; its log says more")


def _validation_error(faults: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's complaints, without the value: it may be a picture."""
    fault = faults[0]
    if fault["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {fault['ctx']['error']}", code="invalid_json")
    param = _path(fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "there is no such parameter"
    return ApiError(400, f"{param or 'the body'}: {message}", param)


def _path(steps: Sequence[str | int]) -> str | None:
    """Where a fault lies, as `messages[0].content`; alternatives' names are no part of it."""
    path = ""
    for before, step in pairwise((None, *steps)):
        if isinstance(step, int):
            path += f"[{step}]"
        elif step not in ("body", *ALTERNATIVES) and not (
            isinstance(before, int) and step in ITEM_ALTERNATIVES
        ):
            path += f".{step}"
    return path.removeprefix(".") or None


def _printable(text: str) -> str:
    """At most so much of a text, without the halves of surrogate pairs that JSON may bring in."""
    return text[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()
