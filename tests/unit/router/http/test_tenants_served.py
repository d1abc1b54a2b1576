"""Keys with limits, through HTTP."""

import array
import json

import pytest
from prometheus_client import REGISTRY

from baton.errors import NumericalError
from baton.net import redis_client
from baton.request import FinishReason
from router.app import App
from router.http.auth import APIKeys
from router.http.rate_limit import RateLimiter
from router.job import PromptResult
from router.openai import cold_routes
from router.openai.generate import Generator
from router.routes import routes

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
LINES = [
    {"key": "slow", "name": "slow", "requests_per_minute": 2, "tokens_per_minute": 100_000},
    {"key": "short", "name": "short", "max_tokens": 3, "priority": "low", "max_ttft_s": 2.5, "models": ["alias"]},
    {"key": "free"},
]


@pytest.fixture
async def client(tmp_path, served_model, dispatch, serve):
    path = tmp_path / "keys"
    path.write_text("\n".join(map(json.dumps, LINES)))
    redis = redis_client.connect("redis://127.0.0.1:1/0")
    generator = Generator(served_model, dispatch, 30.0)
    described = cold_routes.create(served_model, generator, "0")
    limiter = RateLimiter(redis, lambda: 1)
    app = App(routes(generator), dispatch, APIKeys.load(str(path), ""), described, limiter)
    async with serve(app) as router:
        yield router.client
    await redis.aclose()


async def chat(client, key, **fields):
    return await client.post(
        "/v1/chat/completions", json={**CHAT, **fields}, headers={"authorization": f"Bearer {key}"}
    )


async def embed(job, sink, handle):
    if job.token_ids == [7]:
        sink.on_error(NumericalError("bad"))
        return
    sink.on_prompt(PromptResult([], array.array("f", [1.0]).tobytes()))
    sink.on_finish(FinishReason.LENGTH, handle.usage)


def tokens_of(tenant, kind):
    return REGISTRY.get_sample_value("baton_tenant_tokens_total", {"tenant": tenant, "kind": kind}) or 0


def requests_of(tenant, outcome):
    return REGISTRY.get_sample_value("baton_tenant_requests_total", {"tenant": tenant, "outcome": outcome}) or 0


async def test_a_rate_is_limited_and_shown_in_headers(client):
    answers = [await chat(client, "slow") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "100000"
    assert all(99_000 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 100_000 for answer in answers)
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert "x-ratelimit-limit-requests" not in (await chat(client, "free")).headers


async def test_jobs_have_the_limits_of_their_key(client, dispatch):
    before = tokens_of("short", "output")
    answer = await chat(client, "short", model="alias", max_tokens=50)
    assert answer.json()["usage"]["completion_tokens"] == 3
    job = dispatch.jobs[-1]
    assert (job.tenant, job.priority, job.max_ttft_s, job.sampling.max_tokens) == ("short", 2, 2.5, 3)
    assert tokens_of("short", "output") == before + 3


async def test_jobs_without_output_have_the_limits_of_their_key(client, dispatch):
    dispatch.script = embed
    body = {"model": "alias", "input": "a"}
    answer = await client.post("/v1/embeddings", json=body, headers={"authorization": "Bearer short"})
    assert answer.status_code == 200
    job = dispatch.jobs[-1]
    assert (job.tenant, job.priority, job.max_ttft_s) == ("short", 2, 2.5)


async def test_embeddings_are_counted_when_they_are_complete_or_have_failed(client, dispatch):
    dispatch.script = embed
    before = [requests_of("short", "served"), requests_of("short", "failed"), tokens_of("short", "cached")]
    for token_id in (5, 7):
        body = {"model": "alias", "input": [token_id]}
        await client.post("/v1/embeddings", json=body, headers={"authorization": "Bearer short"})
    after = [requests_of("short", "served"), requests_of("short", "failed"), tokens_of("short", "cached")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 3]


async def test_a_model_that_a_key_may_not_use_is_not_found(client, dispatch):
    answer = await chat(client, "short", model="tiny")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert not dispatch.jobs


async def test_prompts_are_tokenized_within_the_limits_of_a_key(client):
    async def tokenize(key, path, **body):
        return (await client.post(path, json=body, headers={"authorization": f"Bearer {key}"})).status_code

    assert await tokenize("short", "/tokenize", prompt="a", model="tiny") == 404
    assert await tokenize("short", "/tokenize", prompt="a", model="alias") == 200
    assert [await tokenize("slow", "/detokenize", tokens=[5]) for _ in range(3)] == [200, 200, 429]
