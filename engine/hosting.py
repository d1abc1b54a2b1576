"""What both kinds of node do with an engine: load it, and say what it offers."""

import asyncio
import sys

from baton.net import redis_client
from baton.net.registry import Role
from baton.node.shell import NodeFacts, say_progress
from baton.process import heap
from baton.process.settings import NodeConfig
from baton.telemetry import gpu_metrics
from baton.v1 import node_pb2, prompt_pb2
from engine import passing_thread
from engine.engine import Engine

_SERVICES = (node_pb2.DESCRIPTOR.services_by_name["Node"], prompt_pb2.DESCRIPTOR.services_by_name["Prompt"])
_SWITCH_INTERVAL_S = 0.001  # the event loop gets the interpreter back soon, also where it shares a core with steps


def load(config: NodeConfig) -> Engine:
    """The model, which takes long. Raises ConfigError where the node cannot start."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    asyncio.run(redis_client.check(config.redis_url))
    engine = passing_thread.run(lambda: Engine.load(config.model, config, say_progress))
    engine.warm()
    heap.settle()
    if engine.config.device.startswith("cuda"):
        gpu_metrics.register()
    return engine


def facts(config: NodeConfig, engine: Engine, role: Role) -> NodeFacts:
    """Of a node of that pool."""
    return NodeFacts(
        role=role,
        services=tuple(service.full_name for service in _SERVICES),
        models=config.served_model_name,
        model_fingerprint=engine.layout.model_fingerprint,
        block_size=engine.config.block_size,
        max_model_len=engine.config.max_model_len,
        num_blocks=engine.num_blocks,
        stretches_after=engine.config.stretches_after,
    )
