"""Assembles a decode node: engine and shell, KV receiver, and the service that decodes requests."""

from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from decode_node.service import DecodeService
from engine import hosting
from engine.engine import Engine
from kv_transfer.pools import pool_of
from kv_transfer.receiver import KVReceiver
from kv_transfer.service import add_transfer_service


def load(config: NodeConfig) -> Engine:
    """See `hosting.load`."""
    return hosting.load(config)


async def serve(config: NodeConfig, engine: Engine, shutdown: Shutdown) -> None:
    """Serve until drained."""
    node = hosting.HostedEngine(config, engine, "decode")
    shell = node.shell
    pool = pool_of(engine.pool, engine.layout, engine.num_blocks)
    receiver = KVReceiver(pool, shell.node_id, shell.epoch, config.host, config.transport)
    add_transfer_service(receiver, shell.server)
    service = DecodeService(engine, node.step_loop, shell, receiver)
    try:
        await node.listen(service)
        receiver.address = shell.address
        await receiver.start()
        await node.run(shutdown)
    finally:
        await node.leave()
        await receiver.close()
        pool.close()
        await node.close()
