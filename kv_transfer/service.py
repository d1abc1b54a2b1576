"""The gRPC service Transfer: Connect compares layouts and picks a transport, Commit returns once it is accepted."""

from typing import Any

import grpc
from grpc import aio

from baton.errors import LayoutMismatch, TransferError
from baton.kv.layout import KVLayout
from baton.v1 import transfer_pb2, transfer_pb2_grpc
from kv_transfer.receiver import KVReceiver
from kv_transfer.transport import Listener, Peer

_Context = aio.ServicerContext[Any, Any]


def add_transfer_service(receiver: KVReceiver, server: aio.Server) -> None:
    """Register the service. The server's token check guards it like every other service."""
    transfer_pb2_grpc.add_TransferServicer_to_server(TransferServicer(receiver), server)


class TransferServicer(transfer_pb2_grpc.TransferServicer):
    """Implements the service. Errors are gRPC statuses with a message meant for the prefill node's log."""

    def __init__(self, receiver: KVReceiver) -> None:
        self._receiver = receiver

    async def Connect(  # noqa: N802
        self, request: transfer_pb2.ConnectRequest, context: _Context
    ) -> transfer_pb2.ConnectReply:
        """Pick a transport, and mint the secret for its connection.

        FAILED_PRECONDITION, with both sides' values, if layouts differ or no transport fits; else RESOURCE_EXHAUSTED.
        """
        receiver = self._receiver
        try:
            self._check(request)
            name, listener = await self._choose(request)
            await listener.ready()
            secret = await receiver.expect(Peer(request.node_id, request.epoch))
        except LayoutMismatch as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message)
        except TransferError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)
        return transfer_pb2.ConnectReply(
            epoch=receiver.epoch, transport=name, host=listener.host, port=listener.port, secret=secret
        )

    async def Commit(  # noqa: N802
        self, request: transfer_pb2.CommitRequest, context: _Context
    ) -> transfer_pb2.CommitReply:
        """Accept a transfer. NOT_FOUND if the grant is unknown, over or not this peer's; ABORTED if it fails."""
        transfer = None
        if request.decode_epoch == self._receiver.epoch:
            transfer = self._receiver.find(request.grant_id, Peer(request.node_id, request.epoch))
        if transfer is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no open grant {request.grant_id}: it is stale or over")
        try:
            await transfer.accept(request)
        except TransferError as error:
            await context.abort(grpc.StatusCode.ABORTED, error.message)
        return transfer_pb2.CommitReply()

    def _check(self, request: transfer_pb2.ConnectRequest) -> None:
        receiver = self._receiver
        mine, theirs = f"decode node {receiver.node_id}", f"prefill node {request.node_id}"
        receiver.pool.layout.check_equal(KVLayout.from_proto(request.layout), mine=mine, theirs=theirs)

    async def _choose(self, request: transfer_pb2.ConnectRequest) -> tuple[str, Listener]:
        receiver = self._receiver
        try:
            return await receiver.listeners.choose(request.transports, request.host_id)
        except LayoutMismatch as error:
            mine = f"{receiver.listeners.names} on decode node {receiver.node_id}"
            theirs = f"{', '.join(request.transports)} on prefill node {request.node_id}"
            raise LayoutMismatch(f"no transport for KV blocks: {mine}, {theirs}: {error.message}") from None
