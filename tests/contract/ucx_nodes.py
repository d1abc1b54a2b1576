"""The UCX processes of nodes, for tests that end them."""

import asyncio

from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender
from kv_transfer.ucx.transport import UcxTransport

NOTICED_S = (
    8.0  # a frozen one after 1.1 s, a dead one at once; on a busy machine rather later, but before anything else
)


def ucx_of(node: KVReceiver | KVSender) -> UcxTransport:
    transports = node.listeners._transports if isinstance(node, KVReceiver) else node._transports
    return transports.get("ucx")


async def restarted(transport: UcxTransport, victim: int) -> None:
    while transport.pid == victim:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await transport._alive()
