"""Assembles a prefill node: engine and shell, KV sender, and the service that sends what the engine computes."""

import dataclasses

from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from engine import hosting
from engine.engine import Engine
from kv_transfer.pools import pool_of
from kv_transfer.sender import KVSender
from prefill_node.service import PrefillService


def load(config: NodeConfig) -> Engine:
    """As `hosting.load`, without CUDA graphs, which are for decode steps."""
    return hosting.load(dataclasses.replace(config, cuda_graphs=False))


async def serve(config: NodeConfig, engine: Engine, shutdown: Shutdown) -> None:
    """Serve until drained."""
    node = hosting.HostedEngine(config, engine, "prefill")
    shell = node.shell
    pool = pool_of(engine.pool, engine.layout, engine.num_blocks)
    sender = KVSender(pool, shell.node_id, shell.epoch, config.transport, config.service_token, config.host, shell.tls)
    service = PrefillService(engine, node.step_loop, shell, sender)
    engine.steps.on_layer_group = service.outputs.on_layer_group
    try:
        await node.listen(service)
        await node.run(shutdown)
    finally:
        await node.leave()
        await sender.close()
        pool.close()
        await node.close()
