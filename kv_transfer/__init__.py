"""Moving KV blocks between nodes.

`KVSender` (prefill nodes) and `KVReceiver` (decode nodes) are the doors; both are given a `KVPool`. Which blocks a
request owns, and when they are computed, the nodes know; how bytes travel, the transports: shm, ucx, tcp, loopback.
"""

from kv_transfer.incoming import IncomingTransfer
from kv_transfer.outgoing import OutgoingTransfer, TransferStats
from kv_transfer.pool import KVPool
from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender

__all__ = [
    "IncomingTransfer",
    "KVPool",
    "KVReceiver",
    "KVSender",
    "OutgoingTransfer",
    "TransferStats",
]
