"""The decode node's side: hands out grants, and decides which prefill nodes may connect. Its gRPC is in `service`."""

import asyncio
import itertools
import secrets

from baton.errors import TransferError
from baton.v1 import transfer_pb2
from kv_transfer.digest import Digester
from kv_transfer.inbox import TransferInbox
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.listeners import Listeners
from kv_transfer.plan import MAX_MESSAGES, messages
from kv_transfer.pool import Pool
from kv_transfer.transport import SECRET_BYTES, Peer

MAX_MESSAGE_BYTES = 4 * 2**20
MAX_GPU_MESSAGE_BYTES = 8 * 2**20  # larger: each message has a fixed cost (launches, synchronization) worth a few MiB
_SECRET_S = 30.0  # validity of a secret: the sender may first have to start its UCX process
_MAX_SECRETS = 1024  # connections announced but not opened yet


class KVReceiver:
    """Grants blocks to prefill nodes and receives them. One per node process; create it in the node's event loop."""

    def __init__(
        self, pool: Pool, node_id: str, epoch: int, host: str, transport: str, max_message_bytes: int | None = None
    ) -> None:
        """`transport` is a transport's name, or `auto` to choose the best one for each pair of nodes.

        Raises ConfigError for an unknown or unavailable transport.
        """
        self.pool = pool
        self.node_id = node_id
        self.epoch = epoch
        self.address = ""  # host:port of the node's gRPC server; set it once that is bound
        self.listeners = Listeners(transport, host, self.inbox, pool.gpu_blocks)
        self._max_message_bytes = max_message_bytes or (MAX_GPU_MESSAGE_BYTES if pool.gpu_blocks else MAX_MESSAGE_BYTES)
        self._digester = Digester()
        self._transfers: dict[int, IncomingTransfer] = {}  # by the high bits of their tags
        self._by_grant: dict[int, IncomingTransfer] = {}
        self._grant_ids = itertools.count(1)
        self._secrets: dict[bytes, tuple[Peer, float]] = {}  # whose it is, and the time at which it expires
        self._epochs: dict[str, int] = {}  # by prefill node id: the latest epoch that has connected

    @property
    def num_open_transfers(self) -> int:
        """The number of grants that are neither accepted nor cancelled."""
        return len(self._by_grant)

    async def start(self) -> None:
        """Listen for data connections, at once if there is a single transport. Raises TransferError if that fails."""
        await self.listeners.start()

    async def close(self) -> None:
        """Fail every open transfer. Returns when nothing writes into the pool any more."""
        for transfer in list(self._by_grant.values()):
            transfer.fail("stopping", "the decode node is stopping")
        await self.listeners.close_listeners()
        for transfer in list(self._by_grant.values()):
            await transfer.cancel()
        await self.listeners.close()
        self._digester.close()

    def grant(
        self, block_ids: list[int], num_present_blocks: int, prefill_node_id: str, prefill_epoch: int, lease_s: float,
        expected_hash: bytes,
    ) -> IncomingTransfer:  # fmt: skip
        """Let one incarnation of a prefill node write `block_ids` for `lease_s` seconds.

        `block_ids` are the request's missing blocks, in order; `expected_hash` is the hash of its last full block, or
        empty if it has none. Nobody may use the blocks until the transfer is accepted or `cancel` has returned.
        """
        grant = transfer_pb2.Grant(
            grant_id=next(self._grant_ids),
            decode_node_id=self.node_id,
            decode_epoch=self.epoch,
            decode_address=self.address,
            num_present_blocks=num_present_blocks,
            num_missing_blocks=len(block_ids),
            max_message_bytes=self._max_message_bytes,
            tag_base=self._new_tag_base(),
            lease_ms=int(lease_s * 1000),
        )
        plan = messages(self.pool.layout, grant.num_missing_blocks, grant.max_message_bytes)
        transfer = IncomingTransfer(
            grant, Peer(prefill_node_id, prefill_epoch), plan, block_ids, self.pool, self._digester, expected_hash,
            self._forget, self.listeners.disconnect,
        )  # fmt: skip
        self._transfers[grant.tag_base // MAX_MESSAGES] = transfer
        self._by_grant[grant.grant_id] = transfer
        return transfer

    async def expect(self, peer: Peer) -> bytes:
        """Mint a secret for one connection of this peer, and disconnect an older incarnation of its node.

        A newer incarnation stays connected: an old process that wakes up after its replacement must not disturb it.
        Raises TransferError if too many secrets are outstanding.
        """
        old = Peer(peer.node_id, self._epochs.get(peer.node_id, peer.epoch))
        self._epochs[peer.node_id] = max(peer.epoch, old.epoch)
        if old.epoch < peer.epoch:
            await self.listeners.disconnect(old)
            for transfer in list(self._by_grant.values()):
                if transfer.peer == old:
                    transfer.fail("peer_lost", "the prefill node has restarted")
        now_s = asyncio.get_running_loop().time()
        self._secrets = {secret: entry for secret, entry in self._secrets.items() if entry[1] > now_s}
        if len(self._secrets) >= _MAX_SECRETS:
            raise TransferError(f"{_MAX_SECRETS} data connections to this decode node are announced and not opened yet")
        secret = secrets.token_bytes(SECRET_BYTES)
        self._secrets[secret] = (peer, now_s + _SECRET_S)
        return secret

    def find(self, grant_id: int, peer: Peer) -> IncomingTransfer | None:
        """Return the open transfer of this grant if it was granted to this peer, else None."""
        transfer = self._by_grant.get(grant_id)
        return transfer if transfer and transfer.peer == peer else None

    def inbox(self, transport: str) -> TransferInbox:
        """Return an inbox for the listener of this transport."""
        return TransferInbox(transport, self._transfers, self._admit)

    def _admit(self, secret: bytes) -> Peer | None:
        peer, end_s = self._secrets.pop(secret, (None, 0.0))
        return peer if end_s > asyncio.get_running_loop().time() else None

    def _forget(self, transfer: IncomingTransfer) -> None:
        self._by_grant.pop(transfer.grant.grant_id, None)
        self._transfers.pop(transfer.grant.tag_base // MAX_MESSAGES, None)

    def _new_tag_base(self) -> int:
        """Draw a tag base that cannot be guessed: over UCX a message is admitted by its tag alone."""
        while (high := secrets.randbits(44)) in self._transfers:
            pass
        return high * MAX_MESSAGES
