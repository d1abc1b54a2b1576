"""Starts a node: checks its config before the engine is imported, which takes seconds."""

import asyncio
from collections.abc import Sequence
from importlib import import_module

from baton import model_source
from baton.net import redis_client, rpc, tls
from baton.process import lifecycle
from baton.process.settings import NodeConfig


def main(prog: str, module: str, argv: Sequence[str] | None = None) -> int:
    """Run a node until it has drained; return the exit code.

    `module` is imported once the config is known to be right. It has `load` and `serve`, for `lifecycle.main`.
    """
    return lifecycle.main(
        prog,
        NodeConfig,
        lambda config: import_module(module).load(config),
        lambda *loaded: import_module(module).serve(*loaded),
        argv,
        complete,
    )


def complete(config: NodeConfig) -> NodeConfig:
    """Return the config with the model's folder filled in. Raises ConfigError if the node could not join a fleet.

    It checks TLS, the listening address and the model, and waits for Redis.
    """
    identity = tls.load(config)
    rpc.bind_address(config.host, config.port, config.service_token, identity)
    config = model_source.complete(config)
    asyncio.run(redis_client.check(config.redis_url, redis_client.PATIENCE_S))
    return config
