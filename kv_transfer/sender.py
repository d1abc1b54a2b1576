"""The prefill node's side: opens transfers, and keeps one connection to each decode node that it sends to."""

import asyncio
import weakref

from baton.errors import TransferError
from baton.net import rpc
from baton.net.tls import Identity
from baton.v1 import transfer_pb2
from kv_transfer.choose import Transports
from kv_transfer.digest import Digester
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.peer import DecodePeer
from kv_transfer.pool import Pool
from kv_transfer.shm.transport import host_id
from kv_transfer.transport import Peer

_UNREACHABLE_S = 1.5  # for which nobody else waits in vain for a node that could not be connected to


class KVSender:
    """One per node process; create it in the node's event loop."""

    def __init__(
        self,
        pool: Pool,
        node_id: str,
        epoch: int,
        transport: str,
        token: str,
        host: str = "127.0.0.1",
        tls: Identity | None = None,
    ) -> None:
        """`transport`: a name, or `auto`; `host` is where this node is reached, and so which network it uses.

        Raises ConfigError where there is no such transport.
        """
        self._pool = pool
        self._incarnation = Peer(node_id, epoch)
        self._token, self._tls = token, tls
        self._transports = Transports(transport, host, pool.gpu_blocks)
        if len(self._transports.names) == 1:  # no matter of choice, and it may take a moment to start
            self._transports.get(self._transports.names[0])
        self._digester = Digester()
        self._peers: dict[str, DecodePeer] = {}  # by node id; the latest incarnation
        self._unreachable: dict[tuple[str, int], tuple[TransferError, float]] = {}  # address and epoch; until when
        self._transfers: weakref.WeakSet[OutgoingTransfer] = weakref.WeakSet()
        self._closing: set[asyncio.Task[None]] = set()

    def open(self, grant: transfer_pb2.Grant, block_ids: list[int]) -> OutgoingTransfer:
        """Begin to send a request's blocks, `block_ids` in order, as far as the grant asks for them.

        Nothing is read before `ready`. Raises TransferError where grant and request do not fit, or where the node could
        not be reached a moment ago; whatever else can go wrong shows in `OutgoingTransfer.error`, and in `commit`.
        """
        peer = self._peer(grant)
        transfer = OutgoingTransfer(grant, block_ids, self._pool, peer, self._digester, self._incarnation)
        peer.enter(transfer)
        self._transfers.add(transfer)
        return transfer

    async def close(self) -> None:
        """Cut off every transfer. Returns when nothing of the pool is read any more."""
        for peer in list(self._peers.values()):
            peer.end(TransferError("the prefill node is stopping"))
        while self._closing:
            await asyncio.wait(self._closing)
        for transfer in list(self._transfers):
            await transfer.abort()
        await self._transports.close()
        self._digester.close()

    def _peer(self, grant: transfer_pb2.Grant) -> DecodePeer:
        peer = self._peers.get(grant.decode_node_id)
        if peer and (peer.epoch, peer.address) == (grant.decode_epoch, grant.decode_address):
            return peer
        if peer:  # it restarted: a new connection, and the old one is closed
            peer.end(TransferError("the decode node has restarted"))
        self._check_reachable(grant)
        hello = transfer_pb2.ConnectRequest(
            node_id=self._incarnation.node_id,
            epoch=self._incarnation.epoch,
            layout=self._pool.layout.to_proto(),
            host_id=host_id(),
        )
        channel = rpc.channel(grant.decode_address, self._tls)
        peer = DecodePeer(
            grant.decode_address, grant.decode_epoch, channel, self._token, hello, self._transports, self._over
        )
        self._peers[grant.decode_node_id] = peer
        return peer

    def _check_reachable(self, grant: transfer_pb2.Grant) -> None:
        now_s = asyncio.get_running_loop().time()
        self._unreachable = {key: entry for key, entry in self._unreachable.items() if entry[1] > now_s}
        if entry := self._unreachable.get((grant.decode_address, grant.decode_epoch)):
            raise type(entry[0])(entry[0].message)

    def _over(self, peer: DecodePeer) -> None:
        if peer.is_unreachable and peer.error:
            until_s = asyncio.get_running_loop().time() + _UNREACHABLE_S
            self._unreachable[peer.address, peer.epoch] = peer.error, until_s
        for node_id, known in list(self._peers.items()):
            if known is peer:
                del self._peers[node_id]
        closing = asyncio.get_running_loop().create_task(peer.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
