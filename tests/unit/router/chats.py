"""A chat to ask a router for, and a dispatch that answers it no further than a token."""

import asyncio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**CHAT, "stream": True}
CHAT_PATH = "/v1/chat/completions"


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the conditions are not ours to signal
            await asyncio.sleep(0.001)


async def one_token_then_wait(job, sink, handle):
    sink.on_tokens([300], None)
    await asyncio.Event().wait()
