"""Interprets failures of nodes and of calls to them: as a reason for another attempt, or an error for the client."""

from grpc import StatusCode, aio

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
from baton.net import rpc_errors
from baton.v1 import node_pb2, types_pb2
from router.nodes.leg import Node

_REFUSALS = (Overloaded, NodeUnavailable, NoCapacity)
_RETRIED = (NodeUnavailable, TransferError, LayoutMismatch, Overloaded, Cancelled)


class Refused(BatonError):
    """A node refused the attempt. Another one may accept it, or this one later."""


def failed_error(failed: node_pb2.Failed, node: Node) -> BatonError:
    """Return the error for a leg that a node refused, or that failed on a prefill node. A refusing node is avoided."""
    error = from_code(failed.code, failed.message, failed.param)
    if isinstance(error, _REFUSALS):
        node.avoid()
        return Refused(error.message)
    return error


def finished_error(finished: types_pb2.Finished, grammar: types_pb2.Grammar) -> BatonError:
    """Return the error for a request that failed on its decode node: TransferError if another attempt may succeed.

    Once a node has begun a request, only its grammar can turn out to be invalid.
    """
    error = from_code(finished.error_code, finished.error_message or "the request failed on its node")
    if isinstance(error, InvalidRequest):
        error.param = grammar.param or None
    return TransferError(error.message) if isinstance(error, _RETRIED) else error


def rpc_error(error: aio.AioRpcError, node: Node) -> BatonError:
    """Return the error for a failed call. An error that the node did not send itself is a loss of the node."""
    known, status = rpc_errors.error_of(error), error.code()
    said = rpc_errors.is_baton_error(error)
    if status is StatusCode.RESOURCE_EXHAUSTED or (said and status is StatusCode.UNAVAILABLE):
        node.avoid()
        return Refused(known.message)
    if said or isinstance(known, InvalidRequest | DeadlineExceeded | TransferError):
        return known
    node.avoid()
    return NodeUnavailable(status.name)
