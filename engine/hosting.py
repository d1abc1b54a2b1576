"""What both kinds of node do with an engine: load it, run its steps within a node's shell, and shut both down.

What a leg is, and who sends or receives KV, is left to the pool's service.
"""

import asyncio
import sys
from typing import Any

from baton.kv.prefix_hash import BlockHash
from baton.net import redis_client
from baton.net.registry import Role
from baton.node.shell import NodeFacts, NodeShell
from baton.process import heap
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from baton.process.supervised import say_progress
from baton.telemetry import gpu_metrics
from baton.v1 import node_pb2, prompt_pb2, prompt_pb2_grpc
from engine import passing_thread
from engine.engine import Engine
from engine.leg_service import LegService
from engine.loading import load_engine
from engine.outputs import StepOutput
from engine.prompt_service import PromptService
from engine.step_loop import StepLoop

_SERVICES = (node_pb2.DESCRIPTOR.services_by_name["Node"], prompt_pb2.DESCRIPTOR.services_by_name["Prompt"])
_SWITCH_INTERVAL_S = 0.001  # so that the event loop soon gets the GIL back, even if it shares a core with steps


def load(config: NodeConfig) -> Engine:
    """Load the model, which takes long. Raises ConfigError if the node cannot start."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    engine = passing_thread.run(lambda: load_engine(config.model, config, say_progress))
    engine.warm()
    heap.settle()
    if engine.config.device.startswith("cuda"):
        gpu_metrics.register()
    return engine


class HostedEngine:
    """The engine of a node and the shell around it. In this order: make the pool's service, `listen`, `run`, `leave`,
    `close`."""

    def __init__(self, config: NodeConfig, engine: Engine, role: Role) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._redis = redis_client.connect(config.redis_url)
        self.step_loop = StepLoop(engine, self._on_output, self._on_crash, self._on_idle)
        self.shell = shell = NodeShell(config, _facts(config, engine, role), self._redis, self._cached)
        self._prompts = PromptService(self.step_loop, shell.sessions, shell.board, shell.timelines)
        prompt_pb2_grpc.add_PromptServicer_to_server(self._prompts, shell.server)

    async def listen(self, service: LegService[Any]) -> None:
        """Open the ports; the node computes nothing yet. Raises ConfigError if a port is taken."""
        self._service = service
        await self.shell.listen(service)

    async def run(self, shutdown: Shutdown) -> None:
        """Run steps as a member of the fleet until the node has drained. Raises the error that broke the engine."""
        self.step_loop.start()
        await self.step_loop.call(self._service.outputs.publish)
        await self.shell.run(shutdown)

    async def leave(self) -> None:
        """Accept no more legs, and end those that are left, which frees what they hold."""
        await self.shell.leave()
        await self._service.close()
        await self._prompts.close()

    async def close(self) -> None:
        """Stop the engine and the shell. Call this after `leave`, when nothing touches the pool any more."""
        await self.step_loop.stop()
        self._engine.close()
        await self.shell.close()
        await self._redis.aclose()

    async def _cached(self) -> list[BlockHash]:
        return await self.step_loop.call(lambda engine: engine.blocks.published())

    def _on_output(self, step: StepOutput) -> None:
        self._service.outputs.publish_after(step, self._engine)
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
