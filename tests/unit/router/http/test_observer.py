"""What is recorded of an answered request: a count by status, one line in the log, and its timeline's attributes."""

import asyncio
import logging
import re
from logging.handlers import QueueHandler

import pytest
from prometheus_client import REGISTRY

from baton.telemetry.timeline import TimelineBook
from router.http.observer import Observer
from tests.unit.router.chats import CHAT, CHAT_PATH, STREAM

pytestmark = pytest.mark.anyio


def num_requests(model, status):
    return REGISTRY.get_sample_value("baton_requests_total", {"model": model, "status": str(status)}) or 0


@pytest.fixture
async def recorded(make_app, serve):
    """Post a body; returns the answer, the record of the log, and the timeline."""
    app, book, log = make_app(), TimelineBook(), logging.getLogger("router.access")
    app._observer = Observer(book)
    records = asyncio.Queue()
    handler, level = QueueHandler(records), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    async with serve(app) as router:

        async def recorded(body):
            answer = await router.client.post(CHAT_PATH, json=body)
            async with asyncio.timeout(5):
                record = await records.get()
            assert records.empty()
            (timeline,) = book.find(answer.headers["x-request-id"])
            return answer, record, timeline

        yield recorded
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_complete_answer_is_recorded_as_such(recorded, dispatch, body):
    before = num_requests("tiny", 200)
    answer, record, timeline = await recorded(body)
    assert num_requests("tiny", 200) == before + 1
    num_prompt, num_output = len(dispatch.jobs[0].token_ids), len(dispatch.reply) + 1
    assert record.request_id == answer.headers["x-request-id"]
    seconds = record.fields.pop("seconds")
    assert set(seconds) == {"total", "ttft", "queue"}
    assert seconds["total"] >= seconds["ttft"] > 0
    assert record.fields == {
        "path": CHAT_PATH,
        "status": 200,
        "model": "tiny",
        "prompt_tokens": num_prompt,
        "output_tokens": num_output,
        "cached_tokens": 3,
    }
    counts = f"prompt_tokens={num_prompt} output_tokens={num_output}"
    assert re.fullmatch(
        rf"{CHAT_PATH} 200 {counts} total=\d\.\d{{3}} ttft=\d\.\d{{3}} queue=0\.001", record.getMessage()
    )
    tokens = {"num_prompt_tokens": num_prompt, "num_output_tokens": num_output}
    assert timeline.attributes == {"status": 200, "model": "tiny", **tokens}


async def test_a_refused_request_is_recorded_with_its_code(recorded):
    before = num_requests("", 404)
    _, record, timeline = await recorded({**CHAT, "model": "other"})
    assert num_requests("", 404) == before + 1
    assert (record.fields["status"], record.fields["code"]) == (404, "model_not_found")
    assert record.getMessage().startswith(f"{CHAT_PATH} 404 model_not_found prompt_tokens=0 output_tokens=0 total=")
    assert timeline.attributes["code"] == "model_not_found"
