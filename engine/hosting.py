"""What both kinds of node do with an engine: load it, let it step within a node's shell, and take both apart again.

Who ships or receives KV, and what a leg is, is the business of the pool.
"""

import asyncio
import sys
from typing import Any, Protocol

from baton.kv.prefix_hash import BlockHash
from baton.net import redis_client
from baton.net.registry import Role
from baton.node.service import Legs
from baton.node.shell import NodeFacts, NodeShell
from baton.process import heap
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from baton.process.supervised import say_progress
from baton.telemetry import gpu_metrics
from baton.v1 import node_pb2, prompt_pb2, prompt_pb2_grpc
from engine import passing_thread
from engine.engine import Engine
from engine.loading import load_engine
from engine.outputs import StepOutput
from engine.owners import Owners
from engine.prompt_service import PromptService
from engine.step_loop import StepLoop

_SERVICES = (node_pb2.DESCRIPTOR.services_by_name["Node"], prompt_pb2.DESCRIPTOR.services_by_name["Prompt"])
_SWITCH_INTERVAL_S = 0.001  # the event loop gets the interpreter back soon, also where it shares a core with steps


def load(config: NodeConfig) -> Engine:
    """The model, which takes long. Raises ConfigError where the node cannot start."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    engine = passing_thread.run(lambda: load_engine(config.model, config, say_progress))
    engine.warm()
    heap.settle()
    if engine.config.device.startswith("cuda"):
        gpu_metrics.register()
    return engine


class PoolService(Legs, Protocol):
    """The legs of a pool."""

    @property
    def outputs(self) -> Owners[Any]:
        """Whose requests the engine has."""

    def deliver(self, step: StepOutput) -> None:
        """In the event loop, after each step."""

    async def close(self) -> None:
        """Cancel what is left, and return when all blocks are given back."""


class HostedEngine:
    """The engine of one node, and the shell around it: make the pool's service, `listen`, `run`, `leave`, `close`."""

    def __init__(self, config: NodeConfig, engine: Engine, role: Role) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._redis = redis_client.connect(config.redis_url)
        self.step_loop = StepLoop(engine, self._on_output, self._on_crash, self._on_idle)
        self.shell = shell = NodeShell(config, _facts(config, engine, role), self._redis, self._cached)
        self._prompts = PromptService(self.step_loop, shell.sessions, shell.board, shell.timelines)
        prompt_pb2_grpc.add_PromptServicer_to_server(self._prompts, shell.server)

    async def listen(self, service: PoolService) -> None:
        """Open the ports, for a node that computes nothing yet. Raises ConfigError where one is taken."""
        self._service = service
        await self.shell.listen(service)

    async def run(self, shutdown: Shutdown) -> None:
        """Step, as a part of the fleet, until the node has drained. Raises what broke the engine."""
        self.step_loop.start()
        await self.step_loop.call(self._service.outputs.publish)
        await self.shell.run(shutdown)

    async def leave(self) -> None:
        """Take no newcomers, and end the legs that are left; what they hold goes with them."""
        await self.shell.leave()
        await self._service.close()
        await self._prompts.close()

    async def close(self) -> None:
        """After `leave`, and when nothing touches the pool any more."""
        await self.step_loop.stop()
        self._engine.close()
        await self.shell.close()
        await self._redis.aclose()

    async def _cached(self) -> list[BlockHash]:
        return await self.step_loop.call(lambda engine: engine.blocks.published())

    def _on_output(self, step: StepOutput) -> None:
        self._service.outputs.publish(self._engine)
        self._loop.call_soon_threadsafe(self._deliver, step)

    def _deliver(self, step: StepOutput) -> None:
        self._service.deliver(step)
        self._prompts.deliver(step)
        self.shell.index.put(step.stored, step.evicted)

    def _on_crash(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self.shell.fail, error)

    def _on_idle(self, engine: Engine) -> None:
        self._service.outputs.audit(engine, self._prompts.owners)


def _facts(config: NodeConfig, engine: Engine, role: Role) -> NodeFacts:
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
