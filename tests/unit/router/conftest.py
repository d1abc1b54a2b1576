"""A router's HTTP side on a real socket, over a dispatcher that does what a test scripts."""

import asyncio
import contextlib
from types import SimpleNamespace

import httpx
import pytest

from baton.process.lifecycle import Shutdown
from baton.process.settings import FrontFlags
from baton.request import FinishReason
from baton.v1.types_pb2 import TokenLogprobs
from router.app import App
from router.http.auth import APIKeys
from router.http.listener import listen
from router.http.server import HTTPServer
from router.job import Usage
from router.openai import cold_routes
from router.openai.generate import Generator
from router.openai.served_model import ServedModel
from router.routes import routes

REPLY = "Größe 🎉 and some more words, to be streamed."


class ScriptedHandle:
    def __init__(self, job, sink, script):
        self.usage = Usage(num_prompt_tokens=len(job.token_ids), num_cached_tokens=3, timings={"queue_s": 0.001})
        self.cancelled = asyncio.Event()
        self.wanted = asyncio.Event()
        self.wanted.set()
        self.task = asyncio.create_task(script(job, sink, self))

    def cancel(self):
        self.cancelled.set()
        self.task.cancel()

    def pause(self):
        self.wanted.clear()

    def resume(self):
        self.wanted.set()


class ScriptedDispatch:
    """Answers every job with REPLY, token by token, unless `script` says otherwise."""

    def __init__(self, model):
        self.ready = True
        self.model = model
        self.facts = SimpleNamespace(max_model_len=400)
        self.jobs, self.handles = [], []
        self.reply = model.tokenizer.encode_chat(REPLY)
        self.eos = min(model.facts.eos_token_ids)
        self.script = self.say

    def submit(self, job, sink):
        self.jobs.append(job)
        self.handles.append(ScriptedHandle(job, sink, lambda *a: self.script(*a)))
        return self.handles[-1]

    async def say(self, job, sink, handle, tokens=None):
        tokens = (tokens or self.reply)[: job.sampling.max_tokens]
        stopped = len(tokens) < job.sampling.max_tokens
        for index, token in enumerate([*tokens, self.eos] if stopped else tokens):
            await asyncio.sleep(0)
            sink.on_tokens([token], self.logprobs(job, index, token))
        handle.usage.num_output_tokens = len(tokens)
        sink.on_finish(FinishReason.STOP if stopped else FinishReason.LENGTH, handle.usage)

    def logprobs(self, job, index, token):
        num = job.sampling.num_logprobs
        if num < 0:
            return None
        top = [token, *range(10, 30)][:num]
        rows = [-0.25, *([float("-inf")] * 20)][:num]
        return [TokenLogprobs(index=index, logprob=-0.25, top_token_ids=top, top_logprobs=rows)]


@pytest.fixture(scope="session")
def served_model(model_dirs):
    return ServedModel.load(FrontFlags(model=str(model_dirs["chatml"]), served_model_name=("tiny", "alias")))


@pytest.fixture
def dispatch(served_model):
    return ScriptedDispatch(served_model)


@pytest.fixture
def make_app(served_model, dispatch):
    def make(keys=(), timeout_s=30.0):
        generator = Generator(served_model, dispatch, timeout_s)
        described = cold_routes.create(served_model, generator, "0")
        return App(routes(generator), dispatch, APIKeys(keys), described)

    return make


@contextlib.asynccontextmanager
async def running(app, drain_timeout_s=2.0, **limits):
    listener = listen("127.0.0.1", 0)
    shutdown = Shutdown()
    http = HTTPServer(app, listener, drain_timeout_s, **limits)
    await http.start()
    task = asyncio.create_task(http.run(shutdown, lambda: None))
    port = listener.getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield SimpleNamespace(app=app, http=http, port=port, client=client, shutdown=shutdown, task=task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def serve():
    return running


@pytest.fixture
async def router(make_app):
    async with running(make_app()) as router:
        yield router
