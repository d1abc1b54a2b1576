"""Every error that Baton raises on purpose, with the HTTP status and OpenAI error fields it turns into.

An error that reaches a client carries a message written for that client: no addresses, no prompts, no internals.
"""

from typing import ClassVar


class BatonError(Exception):
    """Root of the tree. `message` is fit for a client to read."""

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
    """A parameter that the client has to change; `param` names it."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """Prompt, or prompt and max_tokens, longer than the model takes."""

    code = "context_length_exceeded"


class Unauthenticated(BatonError):
    """No key, or a wrong one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ModelNotFound(BatonError):
    """A model name that this fleet does not serve."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class Overloaded(BatonError):
    """Full at present: try again after `retry_after_s`."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    retry_after_s: float = 1.0


class NoCapacity(BatonError):
    """No node of a pool is left, or none before the deadline."""

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
    """An attempt that its router has given up, or replaced by a newer one. Never seen by clients."""

    status = 499
    code = "cancelled"


class NumericalError(BatonError):
    """The model produced NaN or infinite logits for this request."""

    code = "numerical_error"


class NodeUnavailable(BatonError):
    """A node died, drains, or cannot be reached. Never seen by clients: the router tries another one."""

    status = 503
    code = "node_unavailable"


class TransferError(BatonError):
    """KV blocks did not arrive whole: recompute."""

    code = "transfer_failed"


class LayoutMismatch(TransferError):
    """Two nodes whose KV pools differ; the message names every differing field with both values."""

    code = "layout_mismatch"


def from_code(code: str, message: str, param: str | None = None) -> BatonError:
    """The error that another service told by its `code`; one that is not known here is internal."""
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
