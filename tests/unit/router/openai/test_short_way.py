"""The fast path for tokens produces the same bytes as the full one."""

import asyncio
import json
import random
import re

import pytest

from baton.process.settings import FrontFlags
from baton.request import FinishReason
from router.openai import chat, completions, message_format
from router.openai.choice import Choice
from router.openai.served_model import ServedModel

pytestmark = pytest.mark.anyio

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if tools %}<tool_call>{% endif %}{% if false %}<think>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "time"}}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}
COMPLETION = {"model": "tiny", "prompt": "hello", "stream": True}
BODIES = [
    CHAT,
    COMPLETION,
    {**CHAT, "stream_options": {"include_usage": True}},
    {**CHAT, "tools": [TOOL]},
    {**CHAT, "stop": ["e", "zq"], "min_tokens": 12},
    {**CHAT, "stop": ["end\n", "\x01q", "🎉🎉"]},
    {**CHAT, "logprobs": True, "top_logprobs": 2},
    {**CHAT, "n": 3},
    {**CHAT, "stop_token_ids": [70]},
    {**COMPLETION, "echo": True},
    {**CHAT, "stream": False},
    {**CHAT, "stream": False, "tools": [TOOL]},
    {**COMPLETION, "stream": False, "n": 2, "stop": ["end", "🎉🎉"]},
]
NUM_SEEDS = 15


@pytest.fixture(scope="module", params=["plain", "thinking"])
def served_model(request, model_dirs, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    for file in model_dirs["chatml"].iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    if request.param == "thinking":
        (path / "chat_template.jinja").write_text(THINKING)
    return ServedModel.load(FrontFlags(model=str(path), served_model_name=("tiny",)))


class Babbler:
    """A model of random tokens in random portions: words, parts of characters, text to be escaped, special tokens."""

    def __init__(self, dispatch, seed):
        self.dispatch, self.seed = dispatch, seed

    async def say(self, job, sink, handle):
        rng = random.Random(f"{self.seed} {job.sampling.seed}")
        tokenizer = self.dispatch.model.tokenizer
        odd = tokenizer.encode_chat('"quoted" \\ back\n\ttab é 🎉 \x01 end <think></think> <tool_call>')
        if rng.random() < 0.5:
            sink.on_tokens((at_first := tokenizer.encode_chat("<think>so\n</think>\n")), self.logprobs(job, at_first))
        num_left = rng.randint(1, 50)
        while num_left:
            num = min(num_left, rng.choice([1, 1, 1, 2, 5]))
            num_left -= num
            tokens = [rng.choice([*odd, rng.randrange(tokenizer.num_tokens)]) for _ in range(num)]
            tokens = [token for token in tokens if token not in job.sampling.stop_token_ids] or [odd[0]]
            sink.on_tokens(tokens, self.logprobs(job, tokens))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        reason = rng.choice([FinishReason.STOP, FinishReason.LENGTH])
        if reason is FinishReason.STOP:
            last = [rng.choice(sorted(job.sampling.stop_token_ids))]
            sink.on_tokens(last, self.logprobs(job, last))
        sink.on_finish(reason, handle.usage)

    def logprobs(self, job, tokens):
        rows = [self.dispatch.logprobs(job, at, token) for at, token in enumerate(tokens)]
        return None if None in rows else [row for one in rows for row in one]


async def transcript(router, body, dispatch, seed):
    dispatch.script = Babbler(dispatch, seed).say
    data = json.dumps({**body, "seed": seed}).encode()
    path = "chat/completions" if "messages" in body else "completions"
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: me\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return re.sub(rb"date: [^\r]*\r\n", b"", answer)


@pytest.fixture
def same_names(monkeypatch):
    """Replace the ids and times that differ between answers."""
    for module in (chat, completions):
        monkeypatch.setattr(module, "answer_id", lambda prefix: f"{prefix}-0")
        monkeypatch.setattr(module.time, "time", lambda: 1_700_000_000)
    monkeypatch.setattr(message_format, "mint_call_id", lambda _: "call_0")


@pytest.mark.parametrize("body", BODIES)
async def test_both_ways_make_the_same_bytes(router, dispatch, served_model, monkeypatch, same_names, body):
    num_short = 0
    find = Choice._find_short

    def counted(choice):
        short = find(choice)

        def wrapped(text):
            nonlocal num_short
            done = short(text)
            num_short += done
            return done

        return short and wrapped

    monkeypatch.setattr(Choice, "_find_short", counted)
    short = [await transcript(router, body, dispatch, seed) for seed in range(NUM_SEEDS)]
    monkeypatch.setattr(Choice, "_find_short", lambda _: None)
    assert short == [await transcript(router, body, dispatch, seed) for seed in range(NUM_SEEDS)]
    takes_apart = served_model.style.calls and "tools" in body and body["stream"]
    assert (num_short > 100) == (not takes_apart and "logprobs" not in body and "min_tokens" not in body)
