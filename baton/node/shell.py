"""The part of a node process that is the same in both pools: ports, health, registration, heartbeats, drain.

At the start, metrics and gRPC come up first; the node enters the registry, and so gets traffic, only when it is ready.
At the end, it first refuses new requests and leaves the registry, then lets running requests finish, and closes its
ports last. The engine, the transfers and the pool's own services are set up by the prefill or decode node.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from redis.asyncio import Redis

from baton.kv.index_writer import IndexWriter
from baton.kv.prefix_hash import BlockHash
from baton.net import rpc, tls
from baton.net.registry import NodeRecord, Registration, Role, mint_epoch
from baton.node.load import LoadBoard
from baton.node.service import Legs, NodeService
from baton.node.sessions import Sessions
from baton.node.trace_service import TraceService
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from baton.process.supervised import say_ready
from baton.telemetry import otel
from baton.telemetry.exposition import Exposition
from baton.telemetry.metrics_server import MetricsServer
from baton.telemetry.timeline import TimelineBook
from baton.v1 import node_pb2_grpc, trace_pb2_grpc, types_pb2

_STOP_GRACE_S = 1.0
_POLL_S = 0.05
_RECORD_S = 0.5
_READY_FIELDS = ("node_id", "role", "epoch", "address", "metrics_url", "pid")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What the fleet needs to know about a node's model and KV pool."""

    role: Role
    services: tuple[str, ...]  # full names of its gRPC services, for health and reflection
    models: tuple[str, ...]
    model_fingerprint: str
    block_size: int  # tokens
    max_model_len: int  # tokens
    num_blocks: int
    stretches_after: int = 0  # beyond so many tokens RoPE is stretched, and blocks have other hashes; 0: never


class NodeShell:
    """One node process. Add servicers to `server`, `listen`, then `run` until it has drained, then `close`."""

    def __init__(
        self, config: NodeConfig, facts: NodeFacts, redis: Redis, cached: Callable[[], Awaitable[list[BlockHash]]]
    ) -> None:
        """`cached` returns the hashes of all cached blocks, for a new snapshot in the prefix index."""
        self.node_id = config.node_id or f"{facts.role}-{uuid.uuid4().hex[:8]}"
        self.epoch = mint_epoch()
        self.board = LoadBoard()
        self.sessions = Sessions(self.epoch, self.board.load)
        labels = {"role": facts.role, "node_id": self.node_id}
        self._spans = otel.exporter(config.otlp_endpoint, labels)
        self.timelines = TimelineBook(on_end=self._spans.export if self._spans else None)
        self.server = rpc.server(config.service_token)
        self.tls = tls.load(config)
        self.address = ""
        self.index = IndexWriter(redis, facts.model_fingerprint, self.node_id, self.epoch, cached)
        self._config, self._facts, self._redis = config, facts, redis
        metrics_host = config.host if config.service_token else "127.0.0.1"  # plain HTTP: TLS cannot protect it
        self._metrics = MetricsServer(metrics_host, config.metrics_port, config.service_token, Exposition(labels))
        self._health = health_aio.HealthServicer()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beats: asyncio.Task[None] | None = None
        self._registration: Registration | None = None

    async def listen(self, legs: Legs) -> None:
        """Open the ports, without announcing them yet. Raises ConfigError if one is taken."""
        node_pb2_grpc.add_NodeServicer_to_server(NodeService(self.sessions, legs), self.server)
        trace_pb2_grpc.add_TraceServicer_to_server(TraceService(self.node_id, self.timelines), self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection((*self._facts.services, reflection.SERVICE_NAME), self.server)
        host, token = self._config.host, self._config.service_token
        wanted = rpc.bind_address(host, self._config.port, token, self.tls)
        port = rpc.open_port(self.server, wanted, self.tls)
        self.address = rpc.bind_address(host, port, token, self.tls)
        metrics_url = await self._metrics.start()
        self._registration = Registration(self._redis, self._record(metrics_url))
        await self.server.start()
        self._beats = asyncio.create_task(self.sessions.run(), name="heartbeats")

    async def run(self, shutdown: Shutdown) -> None:
        """Announce the node, serve until `shutdown` asks for a drain, then until running requests end or time is up.

        Raises the error that `fail` was given.
        """
        await self._announce()
        refreshing = asyncio.create_task(self._keep_record(), name="record")
        asked = asyncio.create_task(self._drain_when_asked(shutdown), name="drain")
        try:
            await asyncio.wait([asked, self._failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            refreshing.cancel()
            asked.cancel()
        if self._failed.done():
            self._failed.result()

    def fail(self, error: BaseException) -> None:
        """Report that the node cannot go on: `run` raises `error`."""
        if not self._failed.done():
            self._failed.set_exception(error)

    async def leave(self) -> None:
        """Refuse new requests; leave the registry and the prefix index, and fail health checks. Idempotent."""
        self.sessions.draining = True
        if self._registration is not None:
            await self._registration.stop()
        await self.index.stop()
        await self._health.enter_graceful_shutdown()

    async def close(self) -> None:
        """After `leave`: send what is left in the outboxes, end all streams and close the ports. Idempotent."""
        self.sessions.shut()
        if self._beats is not None:
            self._beats.cancel()
        await self.server.stop(_STOP_GRACE_S)
        await self._metrics.stop()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)

    async def _announce(self) -> None:
        registration = self._registered()
        self._set_state(types_pb2.NODE_STATE_READY)
        await self.index.start()
        registration.update(state="ready")
        await registration.start()
        for service in ("", *self._facts.services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        record = registration.record
        say_ready({name: getattr(record, name) for name in _READY_FIELDS})
        _log.info("%s is ready on %s", self.node_id, self.address)

    async def _keep_record(self) -> None:
        while True:
            await asyncio.sleep(_RECORD_S)
            load = self.board.load()
            self._registered().update(
                num_free_blocks=load.num_free_blocks, num_running=load.num_running, num_waiting=load.num_waiting
            )

    async def _drain_when_asked(self, shutdown: Shutdown) -> None:
        await shutdown.wait()
        _log.info("draining: %d requests are still running", self.sessions.num_legs)
        self.sessions.draining = True
        self._set_state(types_pb2.NODE_STATE_DRAINING)
        self._registered().update(state="draining")
        await self._health.enter_graceful_shutdown()
        try:
            async with asyncio.timeout(self._config.drain_timeout_s):
                while self.sessions.num_legs:  # noqa: ASYNC110 - legs end in many places, a drain comes once
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            _log.warning("the time to drain is up: %d requests are cut off", self.sessions.num_legs)

    def _set_state(self, state: "types_pb2.NodeState.ValueType") -> None:
        self.board.state = state
        self.sessions.beat()

    def _registered(self) -> Registration:
        if self._registration is None:
            raise RuntimeError("call listen first")
        return self._registration

    def _record(self, metrics_url: str) -> NodeRecord:
        facts = self._facts
        return NodeRecord(
            node_id=self.node_id,
            role=facts.role,
            epoch=self.epoch,
            address=self.address,
            metrics_url=metrics_url,
            pid=os.getpid(),
            host=socket.gethostname(),
            models=facts.models,
            model_fingerprint=facts.model_fingerprint,
            block_size=facts.block_size,
            max_model_len=facts.max_model_len,
            stretches_after=facts.stretches_after,
            num_blocks=facts.num_blocks,
            num_free_blocks=facts.num_blocks,
        )
