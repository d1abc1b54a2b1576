"""A prefill node put together: engine and step thread, sender, service, and the shell around them."""

import asyncio
import logging
import sys

from baton import redis_client
from baton.lifecycle import Shutdown
from baton.node_shell import NodeFacts, NodeShell, say_progress
from baton.settings import NodeConfig
from baton.v1 import prefill_pb2, prefill_pb2_grpc, prompt_pb2, prompt_pb2_grpc
from engine import passing_thread
from engine.engine import Engine
from engine.outputs import StepOutput
from engine.prompt_service import PromptService
from engine.step_loop import StepLoop
from kv_transfer import KVPool, KVSender, choose
from prefill_node.service import PrefillService

_SWITCH_INTERVAL_S = 0.001  # the event loop gets the interpreter back soon, also where it shares a core with steps

_log = logging.getLogger(__name__)


def load(config: NodeConfig) -> Engine:
    """The model, which takes long. Raises ConfigError where the node cannot start."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    asyncio.run(redis_client.check(config.redis_url))
    return passing_thread.run(lambda: Engine.load(config.model, config, say_progress))


async def serve(config: NodeConfig, engine: Engine, shutdown: Shutdown) -> None:
    """Serve until drained."""
    redis = redis_client.connect(config.redis_url)
    loop = asyncio.get_running_loop()
    shell = NodeShell(
        config, _facts(config, engine), redis, lambda: step_loop.call(lambda engine: engine.blocks.published())
    )

    def on_output(step: StepOutput) -> None:
        service.outputs.publish(engine)
        loop.call_soon_threadsafe(deliver, step)

    def deliver(step: StepOutput) -> None:
        service.outputs.deliver(step)
        prompts.deliver(step)
        shell.index.put(step.stored, step.evicted)

    def on_crash(error: BaseException) -> None:
        loop.call_soon_threadsafe(shell.fail, error)

    step_loop = StepLoop(engine, on_output, on_crash)
    transport, warning = choose(config.transport)
    if warning:
        _log.warning(warning)
    pool = KVPool(engine.pool, engine.layout, engine.num_blocks)
    sender = KVSender(pool, shell.node_id, shell.epoch, transport, config.service_token, config.host)
    service = PrefillService(engine.layout, engine.num_blocks, step_loop, sender, shell.sessions, shell.board)
    engine.on_layer_group = service.outputs.on_layer_group
    prompts = PromptService(step_loop, shell.sessions, shell.board)
    prompt_pb2_grpc.add_PromptServicer_to_server(prompts, shell.server)
    prefill_pb2_grpc.add_PrefillServicer_to_server(service, shell.server)
    try:
        await shell.listen()
        step_loop.start()
        await step_loop.call(service.outputs.publish)
        await shell.run(shutdown)
    finally:
        await shell.leave()
        await service.close()
        await prompts.close()
        await sender.close()
        await step_loop.stop()
        engine.close()
        await shell.close()
        await redis.aclose()


def _facts(config: NodeConfig, engine: Engine) -> NodeFacts:
    return NodeFacts(
        role="prefill",
        services=(
            prefill_pb2.DESCRIPTOR.services_by_name["Prefill"].full_name,
            prompt_pb2.DESCRIPTOR.services_by_name["Prompt"].full_name,
        ),
        models=config.served_model_name,
        model_fingerprint=engine.layout.model_fingerprint,
        block_size=engine.config.block_size,
        max_model_len=engine.config.max_model_len,
        num_blocks=engine.num_blocks,
    )
