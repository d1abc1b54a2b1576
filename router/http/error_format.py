"""Errors in the format that OpenAI's clients expect, and the errors of HTTP itself."""

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from baton.errors import BatonError, ContextLengthExceeded, InvalidRequest, Unauthenticated

Header = tuple[bytes, bytes]


class NotFound(BatonError):
    """There is nothing at this path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(BatonError):
    """The path exists, but not for this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_supported"

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class RequestTimeout(BatonError):
    """The client took too long to send its request."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(BatonError):
    """The body is larger than allowed."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class UnsupportedMediaType(BatonError):
    """The body is declared to be something other than JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HeadersTooLarge(BatonError):
    """The request line and headers are larger than allowed."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


def error_object(error: BatonError) -> dict[str, Any]:
    """Return the error in OpenAI's format: `{"error": {message, type, param, code}}`."""
    fields = {"message": _message(error), "type": error.type, "param": error.param, "code": error.code}
    return {"error": fields}


def _message(error: BatonError) -> str:
    """Return the message, prefixed by `param` unless it names it: OpenAI's Python client shows only the message."""
    is_named = (
        not error.param
        or re.search(rf"(?<!\w){re.escape(error.param)}(?!\w)", error.message)
        or isinstance(error, ContextLengthExceeded)
    )
    return f"{error.param}: {error.message}" if isinstance(error, InvalidRequest) and not is_named else error.message


def error_json(error: BatonError) -> bytes:
    """Return `error_object` as JSON."""
    return msgspec.json.encode(error_object(error))


def error_headers(error: BatonError) -> list[Header]:
    """Return the headers for an error: Retry-After, Allow, WWW-Authenticate, where they apply."""
    headers: list[Header] = []
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after_s))).encode()))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
