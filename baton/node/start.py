"""What a node knows to be wrong before it loads what computes, which takes seconds."""

import asyncio

from baton import model_source
from baton.net import redis_client, rpc, tls
from baton.process.settings import NodeConfig


def complete(config: NodeConfig) -> NodeConfig:
    """The same config, with the model's folder filled in; ConfigError where the node could not be part of a fleet."""
    identity = tls.load(config)
    rpc.bind_address(config.host, config.port, config.service_token, identity)
    config = model_source.complete(config)
    asyncio.run(redis_client.check(config.redis_url, redis_client.PATIENCE_S))
    return config
