"""Checks a node's config before the engine is imported, which takes seconds."""

import asyncio

from baton import model_source
from baton.net import redis_client, rpc, tls
from baton.process.settings import NodeConfig


def complete(config: NodeConfig) -> NodeConfig:
    """Return the config with the model's folder filled in. Raises ConfigError if the node could not join a fleet.

    It checks TLS, the listening address and the model, and waits for Redis.
    """
    identity = tls.load(config)
    rpc.bind_address(config.host, config.port, config.service_token, identity)
    config = model_source.complete(config)
    asyncio.run(redis_client.check(config.redis_url, redis_client.PATIENCE_S))
    return config
