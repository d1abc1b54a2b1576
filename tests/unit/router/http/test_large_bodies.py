"""Bodies with many small values: they are parsed or refused quickly, since all streams wait meanwhile."""

import array
import asyncio
import gc
import json
import time
from operator import mul

import msgspec
import pytest

from baton.errors import ContextLengthExceeded, NoCapacity
from baton.request import FinishReason
from router.http import outlet, turns
from router.job import PromptResult
from tests.waiting import until

pytestmark = pytest.mark.anyio


def filled(head: str, item: str, times: int) -> bytes:
    return f'{{"model":"tiny",{head}[{",".join([item] * times)}]}}'.encode()


def chat(**fields) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a"}], **fields}).encode()


MANY = {str(i): [i] for i in range(200_000)}
CALL = {"id": "c", "function": {"name": "f", "arguments": json.dumps(MANY)}}
TOOLS = [
    {"type": "function", "function": {"name": f"f{i}", "parameters": {**dict.fromkeys(range(2000))}}} for i in range(50)
]
LISTS = {"type": "object", "enum": [[]] * 120_000}
TOOL = {"type": "function", "function": {"name": "f", "parameters": LISTS}}
SENT_BACK = {"type": "output_text", "text": "x", "logprobs": [[]] * 80_000}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": LISTS}}
BUSY = {
    "messages": ("/v1/chat/completions", filled('"messages":', '{"role":"user","content":""}', 270_000)),
    "messages that fit": ("/v1/chat/completions", filled('"messages":', '{"role":"user","content":""}', 30_000)),
    "items": ("/v1/responses", filled('"input":', '{"type":"reasoning"}', 390_000)),
    "items that fit": ("/v1/responses", filled('"input":', '{"type":"reasoning"}', 30_000)),
    "lists": ("/v1/completions", filled('"prompt":', "[1]", 1_900_000)),
    "ids": ("/v1/embeddings", filled('"input":', "1", 3_000_000)),
    "ids to read": ("/detokenize", filled('"tokens":', "1", 900_000)),
    "texts": ("/v1/completions", filled('"prompt":', '""', 1_900_000)),
    "a call": ("/v1/chat/completions", chat(messages=[{"role": "assistant", "tool_calls": [CALL]}])),
    "a call in tokens": ("/tokenize", chat(messages=[{"role": "assistant", "tool_calls": [CALL]}])),
    "schemas": ("/v1/chat/completions", chat(tools=TOOLS)),
    "lists in a tool": ("/v1/chat/completions", chat(tools=[TOOL])),
    "lists in a form": ("/v1/chat/completions", chat(response_format=FORM)),
    "lists in a text": ("/v1/chat/completions", chat(guided_json=json.dumps(LISTS))),
    "stops": ("/v1/chat/completions", chat(stop=["x"] * 200_000)),
    "a bias": ("/v1/chat/completions", chat(logit_bias={str(i): 1 for i in range(250_000)})),
    "a name": ("/v1/chat/completions", chat(**{"x" * 7_000_000: 1})),
    "space": ("/v1/chat/completions", b" " * 7_000_000 + chat()),
    "digits": ("/v1/chat/completions", chat(temperature=0.5).replace(b"0.5", b"0." + b"9" * 7_000_000)),
    "a field many times": ("/v1/chat/completions", b'{"user":"x"' + b',"user":"x"' * 100_000 + b"}"),
    "newlines": ("/v1/completions", json.dumps({"model": "tiny", "prompt": "\n" * 3_500_000}).encode()),
    "values that are ignored": ("/v1/responses", json.dumps({"input": [{"content": [SENT_BACK]}]}).encode()),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_turns(monkeypatch):
    """Reset the turns, and drop their pauses, so that tests do not wait for those before them."""
    monkeypatch.setattr(turns, "PAUSES", 0)
    monkeypatch.setattr(turns, "TURNS", turns.Turns())


@pytest.mark.parametrize("name", BUSY)
async def test_a_large_body_does_not_hold_up_the_others(router, dispatch, name):
    """Some bodies once took a second. The longest pause of the loop is compared with that for one long text."""
    path, body = BUSY[name]
    answers, busy_s = zip(*[await longest_absence(router, path, body) for _ in range(2)], strict=True)
    assert [answer.status_code for answer in answers] == [400, 400]
    assert not dispatch.jobs
    text = json.dumps({"model": "tiny", "prompt": "a" * 7_000_000}).encode()
    plain_s = min([(await longest_absence(router, "/v1/completions", text))[1] for _ in range(2)])
    assert min(busy_s) < 0.002 + 4 * plain_s


async def longest_absence(router, path, body):
    """Post a body; return the answer, and the longest pause of the event loop in CPU seconds of this thread."""
    request = asyncio.create_task(router.client.post(path, content=body))
    worst_s, last_s = 0.0, time.thread_time()
    while not request.done():
        await asyncio.sleep(0)
        worst_s, last_s = max(worst_s, time.thread_time() - last_s), time.thread_time()
    return await request, worst_s


IDS = [[5 + i % 900 for i in range(8000)]] * 128
LONG = {
    "prompts": ("/v1/completions", {"prompt": IDS, "max_tokens": 0}),  # refused after it has been read
    "an id that is none": ("/v1/completions", {"prompt": [*IDS[:-1], [*IDS[0][:-1], -1]]}),
    "inputs": ("/v1/embeddings", {"input": [ids[:140] for ids in IDS * 16], "dimensions": 0}),
}


@pytest.mark.parametrize("name", LONG)
async def test_many_token_ids_hold_up_others_for_less_time_than_decoding_them_takes(router, dispatch, name):
    dispatch.facts.max_model_len = 8192
    path, fields = LONG[name]
    body = json.dumps({"model": "tiny", **fields}).encode()
    began_s = time.thread_time()
    msgspec.json.decode(body)
    decoding_s = time.thread_time() - began_s
    answers, busy_s = zip(*[await longest_absence(router, path, body) for _ in range(3)], strict=True)
    assert [answer.status_code for answer in answers] == [400] * 3
    assert not dispatch.jobs
    assert min(busy_s) < decoding_s / 3


@pytest.fixture
def vector(dispatch):
    """The embedding of everything, in fp32."""
    vector = array.array("f", [0.03125] * 1024)

    async def embed(job, sink, handle):
        await asyncio.sleep(0.001)
        sink.on_prompt(PromptResult([], vector.tobytes()))
        sink.on_finish(FinishReason.LENGTH, handle.usage)

    dispatch.script = embed
    return vector


async def test_scores_are_computed_in_parts(router, dispatch, vector):
    body = json.dumps({"model": "tiny", "text_1": ["a"] * 2048, "text_2": ["b"] * 2048}).encode()
    began_s = time.thread_time()
    assert sum(sum(map(mul, vector, vector)) for _ in range(2048)) == 2048
    computing_s = time.thread_time() - began_s
    busy_s = []
    for _ in range(3):
        dispatch.jobs.clear()
        dispatch.handles.clear()
        gc.collect()
        answer, longest_s = await longest_absence(router, "/v1/score", body)
        assert [item["score"] for item in answer.json()["data"]] == [1.0] * 2048
        busy_s.append(longest_s)
    assert min(busy_s) < computing_s / 8


async def test_a_long_answer_is_sent_in_pieces(router, vector, monkeypatch):
    sizes, write = [], outlet.Outlet.write

    def note(self, data, *, more):
        sizes.append(len(data))
        write(self, data, more=more)

    monkeypatch.setattr(outlet.Outlet, "write", note)
    answer = await router.client.post("/v1/embeddings", json={"model": "tiny", "input": ["a"] * 300})
    assert [item["embedding"] for item in answer.json()["data"]] == [vector.tolist()] * 300
    assert sum(sizes) == int(answer.headers["content-length"])
    assert len(sizes) > 10
    assert max(sizes) < 2**18


async def test_a_long_list_of_ids_is_refused_for_its_length(router):
    answer = await router.client.post("/v1/completions", content=filled('"prompt":', "1", 250_000))
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_many_prompts_are_started_in_parts(router, dispatch, served_model):
    """The loop's longest pause is shorter than the time that all of them take."""
    prompts = [f"{i} " + "some words " * 8 for i in range(128)]
    request = asyncio.create_task(router.client.post("/v1/completions", json={"model": "tiny", "prompt": prompts}))
    most, last = 0, 0
    while not request.done():
        await asyncio.sleep(0)
        most, last = max(most, len(dispatch.jobs) - last), len(dispatch.jobs)
    assert len((await request).json()["choices"]) == len(dispatch.jobs) == 128
    assert most <= 8


async def test_no_more_prompts_are_started_once_one_has_failed(router, dispatch):
    async def fail(job, sink, handle):
        sink.on_error(NoCapacity("none"))

    dispatch.script = fail
    answer = await router.client.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 128})
    assert answer.status_code == 503
    assert len(dispatch.jobs) <= 16
    assert all(handle.cancelled.is_set() for handle in dispatch.handles)


async def test_large_bodies_take_turns(router, monkeypatch):
    """The second body waits, the third is refused because too much is waiting, and a small one need not wait."""
    monkeypatch.setattr(turns, "PAUSES", 1e9)
    monkeypatch.setattr(turns, "MAX_WAITING_BYTES", turns.LARGE_BYTES)

    async def post(num_bytes):
        return (
            await router.client.post("/v1/completions", json={"model": "tiny", "prompt": "a" * num_bytes})
        ).status_code

    assert await post(turns.LARGE_BYTES) == 400
    second = asyncio.create_task(post(turns.LARGE_BYTES))
    async with asyncio.timeout(5):
        await until(lambda: turns.TURNS.num_waiting_bytes)
    assert await post(turns.LARGE_BYTES) == 429
    assert await post(10) == 200
    assert not second.done()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_a_turn_is_as_long_as_the_body_takes_to_decode(router, dispatch, monkeypatch):
    turns_s, pause = [], turns.Turns._pause

    def note(self, began_s):
        turns_s.append(time.monotonic() - began_s)
        pause(self, began_s)

    monkeypatch.setattr(turns.Turns, "_pause", note)
    dispatch.facts.max_model_len = 2**20
    data = json.dumps({"model": "tiny", "prompt": ["\u00e4" * 40_000] * 25, "unknown": 1}).encode()
    began_s = time.monotonic()
    msgspec.json.decode(data)
    decoding_s = time.monotonic() - began_s
    for path, field in (("/v1/completions", b"prompt"), ("/v1/embeddings", b"input")):
        answer = await router.client.post(path, content=data.replace(b"prompt", field))
        assert answer.json()["error"]["param"] == "unknown"
    assert min(turns_s) > decoding_s / 4


async def test_the_next_large_body_waits_for_twice_as_long_as_one_took(monkeypatch):
    monkeypatch.setattr(turns, "PAUSES", 2)
    queue = turns.Turns()
    await queue.take(b"", lambda _: None)
    began_s = time.monotonic()
    time.sleep(0.05)  # noqa: ASYNC251 - it is read, and the loop stands
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await queue.take(b"", lambda _: None)
    assert time.monotonic() - began_s >= 3 * 0.05


def test_more_messages_than_the_context_has_tokens_are_refused_unread(served_model):
    class Message:
        @property
        def sizes(self):
            raise AssertionError("it was")

    with pytest.raises(ContextLengthExceeded):
        served_model.check_sizes([Message()] * 401, 400, "messages")
