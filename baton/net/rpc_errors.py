"""BatonErrors as gRPC statuses and back: one convention for every service.

INVALID_ARGUMENT is the request's own fault and final. RESOURCE_EXHAUSTED is full now, UNAVAILABLE draining or dying,
ABORTED and FAILED_PRECONDITION a transfer that failed, DEADLINE_EXCEEDED and CANCELLED what they say: another node, or
the same one later, may do better. The error's code and param travel as trailing metadata, its message as the details.
"""

from typing import Any, NoReturn

import grpc
from grpc import aio

from baton.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    LayoutMismatch,
    NoCapacity,
    NodeUnavailable,
    Overloaded,
    TransferError,
    from_code,
)

_CODE, _PARAM = "baton-code", "baton-param"

# The most derived class first: the first that fits wins.
_STATUS: tuple[tuple[type[BatonError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NodeUnavailable, grpc.StatusCode.UNAVAILABLE),
    (NoCapacity, grpc.StatusCode.UNAVAILABLE),
    (LayoutMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (TransferError, grpc.StatusCode.ABORTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Cancelled, grpc.StatusCode.CANCELLED),
)


def status_of(error: BatonError) -> grpc.StatusCode:
    """The gRPC status that an error turns into."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


async def abort(context: aio.ServicerContext[Any, Any], error: BatonError) -> NoReturn:
    """End the call with the error; does not return."""
    metadata = [(_CODE, error.code or "")] + ([(_PARAM, error.param)] if error.param else [])
    await context.abort(status_of(error), error.message, tuple(metadata))
    raise AssertionError("abort returned")


def is_told(rpc_error: aio.AioRpcError) -> bool:
    """Whether the peer itself has ended the call with a BatonError; else gRPC has."""
    return any(name == _CODE for name, _ in rpc_error.trailing_metadata() or ())


def error_of(rpc_error: aio.AioRpcError) -> BatonError:
    """The BatonError behind a failed call; a peer that is gone is NodeUnavailable."""
    metadata = dict(rpc_error.trailing_metadata() or ())
    message, param = rpc_error.details() or "", metadata.get(_PARAM)
    param = str(param) if param else None
    if code := metadata.get(_CODE):
        return from_code(str(code), message, param)
    status = rpc_error.code()
    kind = next((kind for kind, other in _STATUS if other is status), BatonError)
    return kind(message, param=param)
