"""A router process: from its flags to a listening socket, and from SIGTERM to the end of the last stream.

Everything wrong with the flags, including a port that is taken, raises ConfigError before the event loop runs.
`http.server` describes what clients see during a drain.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from baton.errors import ConfigError
from baton.model_source import complete
from baton.net import redis_client, tls
from baton.net.rpc import is_loopback
from baton.process import lifecycle, tasks
from baton.process.lifecycle import Shutdown
from baton.process.settings import RouterConfig
from baton.process.supervised import say_ready
from baton.telemetry import otel
from baton.telemetry.exposition import Exposition
from baton.telemetry.timeline import TimelineBook
from router import memory, ports
from router.admin.port import AdminPort
from router.app import App
from router.http.auth import APIKeys
from router.http.connections import raise_descriptor_limit
from router.http.listener import listen, shown_address
from router.http.observer import Observer
from router.http.rate_limit import RateLimiter
from router.http.server import HTTPServer
from router.openai import cold_routes
from router.openai.generate import Generator
from router.openai.served_model import ServedModel
from router.placing.admission import Limits
from router.routes import routes
from router.serving.dispatch import Dispatcher

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What is loaded before the event loop starts."""

    listener: socket.socket
    admin_listener: socket.socket
    keys: APIKeys
    model: ServedModel
    identity: tls.Identity | None  # for mutual TLS with the nodes


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until it is told to end; return the exit code."""
    return lifecycle.main("baton router", RouterConfig, _load, serve, argv, complete)


def _load(config: RouterConfig) -> Loaded:
    loaded = load(config)
    asyncio.run(_check(config))
    return loaded


async def _check(config: RouterConfig) -> None:
    await redis_client.check(config.redis_url, redis_client.PATIENCE_S)
    await ports.check_sharing(config)


def load(config: RouterConfig) -> Loaded:
    """Open the ports and load keys, model and certificates. Raises ConfigError for everything wrong with the flags."""
    keys = APIKeys.load(config.api_key_file, config.api_key)
    if not keys and not is_loopback(config.host):
        raise ConfigError(
            f"refusing to listen on {config.host} without API keys: set --api-key-file or BATON_API_KEY, or listen on "
            "127.0.0.1"
        )
    if not (keys or config.service_token) and not is_loopback(config.admin_host):
        raise ConfigError(
            f"refusing to open the admin port on {config.admin_host} without API keys or a service token: set one, or "
            "leave --admin-host at 127.0.0.1"
        )
    raise_descriptor_limit()
    listener = listen(config.host, config.port)
    admin_listener = ports.admin_listener(config.admin_host, config.admin_port)
    return Loaded(listener, admin_listener, keys, ServedModel.load(config), tls.load(config))


async def serve(config: RouterConfig, loaded: Loaded, shutdown: Shutdown) -> None:
    """Serve until a drain is requested and complete."""
    address = shown_address(config.host, loaded.listener, config.redis_url)
    redis = redis_client.connect(config.redis_url)
    metrics_url = f"http://{shown_address(config.admin_host, loaded.admin_listener, config.redis_url)}/metrics"
    router_id = f"{config.node_id or 'router'}.{secrets.token_hex(4)}"  # unique to this incarnation
    labels = {"role": "router", "node_id": config.node_id or router_id}
    spans = otel.exporter(config.otlp_endpoint, labels)
    timelines = TimelineBook(on_end=spans.export if spans else None)
    dispatcher = _dispatcher(config, loaded, router_id, address, metrics_url, timelines)
    exposition = Exposition(labels)
    admin = AdminPort(config, loaded.admin_listener, loaded.keys, dispatcher, exposition, loaded.model.names)
    watching = asyncio.create_task(loaded.keys.watch(), name="API keys")
    try:
        await dispatcher.start()
        admin.start()
        app = _app(config, loaded, dispatcher, RateLimiter(redis, lambda: dispatcher.num_routers), exposition, spans)
        http = HTTPServer(app, loaded.listener, config.drain_timeout_s, config.max_connections_per_address)
        await http.start()
        memory.settle()
        facts = {"node_id": router_id, "role": "router", "address": address, "metrics": metrics_url, "pid": os.getpid()}
        say_ready(facts)
        _log.info("%s listens on http://%s", router_id, address)
        await http.run(shutdown, dispatcher.leave)
    finally:
        await tasks.end(watching)
        await admin.stop()
        await dispatcher.stop()
        await redis.aclose()
        if spans is not None:
            await asyncio.to_thread(spans.close)


def _dispatcher(
    config: RouterConfig, loaded: Loaded, router_id: str, address: str, metrics_url: str, timelines: TimelineBook
) -> Dispatcher:
    return Dispatcher(
        config.redis_url,
        endpoint=address,
        router_id=router_id,
        service_token=config.service_token,
        tls=loaded.identity,
        models=loaded.model.names,
        metrics_url=metrics_url,
        limits=Limits(max_ttft_s=config.max_ttft_s, max_waiting=config.max_waiting),
        timelines=timelines,
    )


def _app(
    config: RouterConfig,
    loaded: Loaded,
    dispatcher: Dispatcher,
    limiter: RateLimiter,
    exposition: Exposition,
    spans: otel.SpanExporter | None,
) -> App:
    generator = Generator(loaded.model, dispatcher, config.request_timeout_s, logs_prompts=config.log_prompts)
    described = cold_routes.create(loaded.model, generator, version("baton"), exposition)
    observer = Observer(dispatcher.timelines, traces=spans is not None)
    return App(routes(generator), dispatcher, loaded.keys, described, limiter, observer)
