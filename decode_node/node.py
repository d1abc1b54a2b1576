"""A decode node put together: engine and step thread, receiver, service, and the shell around them."""

import asyncio

from baton.net import redis_client
from baton.node.shell import NodeShell
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from baton.v1 import prompt_pb2_grpc
from decode_node.service import DecodeService
from engine import hosting
from engine.engine import Engine
from engine.outputs import StepOutput
from engine.prompt_service import PromptService
from engine.step_loop import StepLoop
from kv_transfer.pools import pool_of
from kv_transfer.receiver import KVReceiver


async def serve(config: NodeConfig, engine: Engine, shutdown: Shutdown) -> None:
    """Serve until drained."""
    redis = redis_client.connect(config.redis_url)
    loop = asyncio.get_running_loop()
    facts = hosting.facts(config, engine, "decode")
    shell = NodeShell(config, facts, redis, lambda: step_loop.call(lambda engine: engine.blocks.published()))

    def on_output(step: StepOutput) -> None:
        service.outputs.publish(engine)
        loop.call_soon_threadsafe(deliver, step)

    def deliver(step: StepOutput) -> None:
        service.deliver(step)
        prompts.deliver(step)
        shell.index.put(step.stored, step.evicted)

    def on_crash(error: BaseException) -> None:
        loop.call_soon_threadsafe(shell.fail, error)

    def on_idle(engine: Engine) -> None:
        service.outputs.audit(engine, prompts.owners)

    step_loop = StepLoop(engine, on_output, on_crash, on_idle)
    pool = pool_of(engine.pool, engine.layout, engine.num_blocks)
    receiver = KVReceiver(pool, shell.node_id, shell.epoch, config.host, config.transport, config.service_token)
    receiver.add_to(shell.server)
    service = DecodeService(
        engine.layout, engine.num_blocks, step_loop, receiver, shell.sessions, shell.board, shell.timelines
    )
    prompts = PromptService(step_loop, shell.sessions, shell.board, shell.timelines)
    prompt_pb2_grpc.add_PromptServicer_to_server(prompts, shell.server)
    try:
        await shell.listen(service)
        receiver.address = shell.address
        await receiver.start()
        step_loop.start()
        await step_loop.call(service.outputs.publish)
        await shell.run(shutdown)
    finally:
        await shell.leave()
        await service.close()
        await prompts.close()
        await receiver.close()
        pool.close()
        await step_loop.stop()
        engine.close()
        await shell.close()
        await redis.aclose()
