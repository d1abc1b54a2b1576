"""Moving KV blocks between nodes.

`KVSender` (prefill nodes) and `KVReceiver` (decode nodes) are the doors; both are given a `KVPool`. Which blocks a
request owns, and when they are computed, the nodes know; how bytes travel, the transports: shm, ucx, tcp, loopback.

What is named here is imported when it is first used: the UCX process, which belongs to this package, needs none of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kv_transfer.incoming import IncomingTransfer
    from kv_transfer.outgoing import OutgoingTransfer, TransferStats
    from kv_transfer.pool import KVPool
    from kv_transfer.receiver import KVReceiver
    from kv_transfer.sender import KVSender

_MODULES = {
    "IncomingTransfer": "incoming",
    "KVPool": "pool",
    "KVReceiver": "receiver",
    "KVSender": "sender",
    "OutgoingTransfer": "outgoing",
    "TransferStats": "outgoing",
}
__all__ = ["IncomingTransfer", "KVPool", "KVReceiver", "KVSender", "OutgoingTransfer", "TransferStats"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
