"""Maps BatonErrors to gRPC statuses and back: one convention for every service.

INVALID_ARGUMENT is the request's own fault and final. After the others, another node, or the same one later, may do
better: RESOURCE_EXHAUSTED means that the node is full, UNAVAILABLE that it is draining or dying, ABORTED and
FAILED_PRECONDITION that a transfer failed; DEADLINE_EXCEEDED and CANCELLED have their usual meaning. The error's code
and param travel as trailing metadata, its message as the status details.
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

# The first match wins, so derived classes come before their bases.
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
    """Return the gRPC status for an error; INTERNAL for one that is not listed."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


async def abort(context: aio.ServicerContext[Any, Any], error: BatonError) -> NoReturn:
    """End the call with this error; never returns."""
    metadata = [(_CODE, error.code or "")] + ([(_PARAM, error.param)] if error.param else [])
    await context.abort(status_of(error), error.message, tuple(metadata))
    raise AssertionError("abort returned")


def is_baton_error(rpc_error: aio.AioRpcError) -> bool:
    """Whether the peer ended the call with a BatonError. Otherwise gRPC itself did."""
    return any(name == _CODE for name, _ in rpc_error.trailing_metadata() or ())


def error_of(rpc_error: aio.AioRpcError) -> BatonError:
    """Return the BatonError for a failed call. An unreachable peer gives NodeUnavailable."""
    metadata = dict(rpc_error.trailing_metadata() or ())
    message, param = rpc_error.details() or "", metadata.get(_PARAM)
    param = str(param) if param else None
    if code := metadata.get(_CODE):
        return from_code(str(code), message, param)
    status = rpc_error.code()
    kind = next((kind for kind, other in _STATUS if other is status), BatonError)
    return kind(message, param=param)
