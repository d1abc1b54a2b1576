"""A chat request for tests, and a dispatch that answers it with a single token."""

import asyncio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**CHAT, "stream": True}
CHAT_PATH = "/v1/chat/completions"


async def one_token_then_wait(job, sink, handle):
    sink.on_tokens([300], None)
    await asyncio.Event().wait()
