"""The embedding endpoints over a scripted dispatcher: their jobs, how many at once, and what ends them."""

import array
import asyncio

import pytest

from baton.errors import NoCapacity, NumericalError, Overloaded
from baton.request import FinishReason
from router.job import PromptResult, PromptWork
from router.openai.embeddings import MAX_IN_FLIGHT

pytestmark = pytest.mark.anyio


@pytest.fixture
def vectors(dispatch):
    """Answers each job with a vector of its first token; notes how many jobs were in flight at once."""
    seen = {"now": 0, "most": 0}

    async def embed(job, sink, handle):
        seen["now"] += 1
        seen["most"] = max(seen.values())
        await asyncio.sleep(0.001)
        seen["now"] -= 1
        sink.on_prompt(PromptResult([], array.array("f", [job.token_ids[0], 1.0]).tobytes()))
        sink.on_finish(FinishReason.LENGTH, handle.usage)

    dispatch.script = embed
    return seen


async def test_many_inputs_in_order_and_a_bounded_number_at_once(router, dispatch, vectors):
    inputs = [[5 + i % 200] for i in range(300)]
    answer = await router.client.post("/v1/embeddings", json={"model": "tiny", "input": inputs, "dimensions": 2})
    assert [item["embedding"][0] for item in answer.json()["data"]] == [float(tokens[0]) for tokens in inputs]
    assert vectors["most"] == MAX_IN_FLIGHT
    assert {job.sampling.max_tokens for job in dispatch.jobs} == {0}
    assert {job.prompt_work.dimensions for job in dispatch.jobs} == {2}
    assert dispatch.jobs[0].prompt_work == PromptWork(embeds=True, dimensions=2)


async def test_a_score_embeds_each_text_once(router, dispatch, vectors):
    body = {"model": "tiny", "text_1": "a", "text_2": ["b", "c", "d"]}
    answer = (await router.client.post("/v1/score", json=body)).json()
    assert (len(dispatch.jobs), len(answer["data"])) == (4, 3)
    assert answer["usage"]["total_tokens"] == sum(len(job.token_ids) for job in dispatch.jobs)


@pytest.mark.parametrize(("error", "status"), [(NumericalError("bad"), 500), (Overloaded("full"), 429)])
async def test_one_failure_ends_all(router, dispatch, error, status):
    async def fail(job, sink, handle):
        if job.token_ids == [7]:
            sink.on_error(error)
        else:
            await asyncio.Event().wait()

    dispatch.script = fail
    answer = await router.client.post("/v1/embeddings", json={"model": "tiny", "input": [[5], [6], [7]]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, error.code)
    for handle in dispatch.handles:
        await asyncio.wait_for(handle.cancelled.wait(), 10)


async def test_a_refused_job_is_an_error(router, dispatch, monkeypatch):
    def refuse(job, sink):
        raise NoCapacity("nobody there")

    monkeypatch.setattr(dispatch, "submit", refuse)
    answer = await router.client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_a_client_that_disconnects_cancels_its_jobs(router, dispatch):
    both_there = asyncio.Event()

    async def never(job, sink, handle):
        if len(dispatch.handles) == 2:
            both_there.set()
        await asyncio.Event().wait()

    dispatch.script = never
    asking = asyncio.create_task(router.client.post("/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]}))
    async with asyncio.timeout(10):
        await both_there.wait()
        asking.cancel()
        for handle in dispatch.handles:
            await handle.cancelled.wait()


async def test_the_error_names_the_text_that_is_too_long(router, vectors):
    for num_words in (450, 200_000):  # counted in tokens; in characters, before it is encoded
        text = "a " * num_words
        for path, fields, param in (
            ("/v1/embeddings", {"input": ["a", text]}, "input"),
            ("/v1/score", {"text_1": text, "text_2": "a"}, "text_1"),
            ("/v1/score", {"text_1": "a", "text_2": [text]}, "text_2"),
        ):
            error = (await router.client.post(path, json={"model": "tiny", **fields})).json()["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", param)


@pytest.mark.parametrize(("given", "kept"), [(3, 3), (-1, 400), (9999, 400)])
async def test_truncate_prompt_tokens_keeps_the_first_tokens(router, dispatch, vectors, given, kept):
    limit = {"model": "tiny", "truncate_prompt_tokens": given}
    words = "a b " * 450
    whole = (await router.client.post("/tokenize", json={"prompt": words[:1000]})).json()["tokens"]
    for path, fields in (
        ("/v1/embeddings", {"input": words}),
        ("/v1/embeddings", {"input": whole}),
        ("/v1/score", {"text_1": words, "text_2": words}),
    ):
        dispatch.jobs.clear()
        answer = await router.client.post(path, json={**limit, **fields})
        assert answer.json()["usage"]["prompt_tokens"] == kept * len(dispatch.jobs)
        assert [job.token_ids for job in dispatch.jobs] == [whole[:kept]] * len(dispatch.jobs)
    assert len(dispatch.jobs) == 2


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": "a", "truncate_prompt_tokens": 0}, 400),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "truncate_prompt_tokens": -2}, 400),
        ("/v1/embeddings", {"model": "other", "input": "a"}, 404),
        ("/v1/embeddings", {"model": "tiny"}, 400),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "surprise": 1}, 400),
        ("/v1/embeddings", {"model": "tiny", "input": []}, 400),
        ("/v1/embeddings", {"model": "tiny", "input": ""}, 400),
        ("/v1/embeddings", {"model": "tiny", "input": [99999]}, 400),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "dimensions": 0}, 400),
        ("/v1/score", {"model": "tiny", "text_1": [], "text_2": "a"}, 400),
    ],
)
async def test_bad_bodies(router, path, body, status):
    answer = await router.client.post(path, json=body)
    assert (answer.status_code, "error" in answer.json()) == (status, True)
