"""Errors as OpenAI's clients expect them."""

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from baton.errors import BatonError, ContextLengthExceeded, InvalidRequest, Unauthenticated

Header = tuple[bytes, bytes]


class NotFound(BatonError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(BatonError):
    """The path is there, for another method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_supported"

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class RequestTimeout(BatonError):
    """The client takes too long to send its request."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(BatonError):
    """More bytes than a request may have."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class UnsupportedMediaType(BatonError):
    """A body that says it is something other than JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HeadersTooLarge(BatonError):
    """More bytes before the body than a request may have."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


def error_object(error: BatonError) -> dict[str, Any]:
    """The error as OpenAI's clients know it: `{"error": {message, type, param, code}}`."""
    fields = {"message": _told(error), "type": error.type, "param": error.param, "code": error.code}
    return {"error": fields}


def _told(error: BatonError) -> str:
    """The message, with the field in front of it where it does not name it: OpenAI's Python client shows no more."""
    is_named = (
        not error.param
        or re.search(rf"(?<!\w){re.escape(error.param)}(?!\w)", error.message)
        or isinstance(error, ContextLengthExceeded)
    )
    return f"{error.param}: {error.message}" if isinstance(error, InvalidRequest) and not is_named else error.message


def error_json(error: BatonError) -> bytes:
    """`error_object` as JSON."""
    return msgspec.json.encode(error_object(error))


def error_headers(error: BatonError) -> list[Header]:
    """Headers of an error's answer: when to come again, which methods there are, how to authenticate."""
    headers: list[Header] = []
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after_s))).encode()))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
