"""Every error that Baton raises on purpose, with the HTTP status and the OpenAI error fields that it maps to.

The messages of errors that reach clients are written for them: no addresses, no prompts, no internals.
"""

from typing import ClassVar


class BatonError(Exception):
    """Base class of all errors. `message` is fit for a client to read."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(BatonError):
    """A service cannot start: a bad flag, a missing checkpoint, an occupied port. Printed, then exit code 1."""


class CheckpointError(ConfigError):
    """A model directory that cannot be served; the message names the file, and the tensor if there is one."""


class InvalidRequest(BatonError):
    """A parameter is invalid and the client has to change it; `param` names it."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt and max_tokens together, exceed the model's context length."""

    code = "context_length_exceeded"


class Unauthenticated(BatonError):
    """The API key is missing or wrong."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ModelNotFound(BatonError):
    """The fleet does not serve a model of this name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class Overloaded(BatonError):
    """The fleet is full at present; the client may try again after `retry_after_s`."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    retry_after_s: float = 1.0


class NoCapacity(BatonError):
    """A pool has no node left, or none became available before the deadline."""

    status = 503
    type = "server_error"
    code = "no_capacity"
    retry_after_s: float = 1.0


class DeadlineExceeded(BatonError):
    """The request's time is up."""

    status = 504
    type = "server_error"
    code = "deadline_exceeded"


class Cancelled(BatonError):
    """The router has cancelled this attempt or replaced it by a newer one. Never seen by clients."""

    status = 499
    code = "cancelled"


class NumericalError(BatonError):
    """The model produced NaN or infinite logits for this request."""

    code = "numerical_error"


class NodeUnavailable(BatonError):
    """A node died, is draining, or cannot be reached. Never seen by clients: the router tries another one."""

    status = 503
    code = "node_unavailable"


class TransferError(BatonError):
    """KV blocks did not arrive complete and correct, so they have to be recomputed."""

    code = "transfer_failed"


class LayoutMismatch(TransferError):
    """Two nodes cannot exchange KV: their layouts differ (the message names the fields) or they share no transport."""

    code = "layout_mismatch"


def from_code(code: str, message: str, param: str | None = None) -> BatonError:
    """Return the error that another service reported by its `code`; a plain BatonError for an unknown code."""
    return _BY_CODE.get(code, BatonError)(message, param=param or None)


_BY_CODE: dict[str, type[BatonError]] = {
    str(kind.code): kind
    for kind in (
        InvalidRequest,
        ContextLengthExceeded,
        Overloaded,
        NoCapacity,
        DeadlineExceeded,
        Cancelled,
        NumericalError,
        NodeUnavailable,
        TransferError,
        LayoutMismatch,
    )
}
