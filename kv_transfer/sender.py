"""The prefill node's side: opens transfers, and keeps one `DecodePeer` for each decode node that it sends to."""

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

_UNREACHABLE_S = 1.5  # after a failed connect, new transfers to that node fail at once for this long


class KVSender:
    """Opens transfers to decode nodes. One per node process; create it in the node's event loop."""

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
        """`transport` is a transport's name or `auto`. `host` is this node's own address; UCX uses its network device.

        Raises ConfigError for an unknown or unavailable transport.
        """
        self._pool = pool
        self._incarnation = Peer(node_id, epoch)
        self._token, self._tls = token, tls
        self._transports = Transports(transport, host, pool.gpu_blocks)
        if len(self._transports.names) == 1:  # no choice to make, so start it now: that may take a moment
            self._transports.get(self._transports.names[0])
        self._digester = Digester()
        self._peers: dict[str, DecodePeer] = {}  # by node id: its latest incarnation
        self._unreachable: dict[tuple[str, int], tuple[TransferError, float]] = {}  # (address, epoch): error, until_s
        self._transfers: weakref.WeakSet[OutgoingTransfer] = weakref.WeakSet()
        self._closing: set[asyncio.Task[None]] = set()

    def open(self, grant: transfer_pb2.Grant, block_ids: list[int]) -> OutgoingTransfer:
        """Open a transfer of the blocks that the grant asks for. `block_ids` are all blocks of the request, in order.

        No block is read before `OutgoingTransfer.ready` names it. Raises TransferError if the grant does not match the
        number of blocks, or if the node could not be reached a moment ago. Later failures are reported by
        `OutgoingTransfer.error` and by `commit`.
        """
        peer = self._peer(grant)
        transfer = OutgoingTransfer(grant, block_ids, self._pool, peer, self._digester, self._incarnation)
        peer.enter(transfer)
        self._transfers.add(transfer)
        return transfer

    async def close(self) -> None:
        """Abort every transfer. Returns when the pool is no longer read."""
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
        if peer:  # the node restarted: close the old connection, open a new one
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
            grant.decode_address, grant.decode_epoch, channel, self._token, hello, self._transports, self._peer_ended
        )
        self._peers[grant.decode_node_id] = peer
        return peer

    def _check_reachable(self, grant: transfer_pb2.Grant) -> None:
        now_s = asyncio.get_running_loop().time()
        self._unreachable = {key: entry for key, entry in self._unreachable.items() if entry[1] > now_s}
        if entry := self._unreachable.get((grant.decode_address, grant.decode_epoch)):
            raise type(entry[0])(entry[0].message)

    def _peer_ended(self, peer: DecodePeer) -> None:
        if peer.is_unreachable and peer.error:
            until_s = asyncio.get_running_loop().time() + _UNREACHABLE_S
            self._unreachable[peer.address, peer.epoch] = peer.error, until_s
        for node_id, known in list(self._peers.items()):
            if known is peer:
                del self._peers[node_id]
        closing = asyncio.get_running_loop().create_task(peer.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
