"""The columns of a step are sent to the routers of their requests."""

import pytest

from baton.errors import NumericalError
from baton.kv.prefix_hash import root_hash
from baton.node.load import CACHED_TOKENS, PROMPT_TOKENS, LoadBoard
from baton.node.sessions import Sessions
from baton.request import FinishReason, Generation, SamplingParams
from baton.v1 import types_pb2
from decode_node.legs import DecodeLeg
from decode_node.outputs import Outputs
from engine.outputs import StepOutput
from engine.request import Request
from engine.sampling.sampler import Logprobs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sessions():
    sessions = Sessions(7, types_pb2.Load)
    for router_id in ("one", "two"):
        sessions.attach(router_id)
    return sessions


@pytest.fixture
async def outputs(sessions):
    return Outputs(sessions, LoadBoard())


@pytest.fixture
def running(outputs, sessions):
    """A request of that router, with a leg that waits for its results."""

    def make(key, router_id="one", attempt=0):
        generation = Generation(
            request_id=f"r{key}",
            key=key,
            attempt=attempt,
            token_ids=[1, 2, 3],
            num_prompt_tokens=3,
            sampling=SamplingParams(),
            router_id=router_id,
        )
        request = Request(generation, root_hash("model", b""), 4, 0.0)
        leg = DecodeLeg(generation)
        sessions.open(leg)
        outputs.expect(request, leg)
        return request, leg

    return make


def step(requests, *, index=0, **columns):
    tokens = [100 + request.key for request in requests]
    return StepOutput(requests=requests, token_ids=tokens, indices=[index] * len(requests), **columns)


def told(sessions, router_id):
    batch = sessions.session(router_id).take()
    return list(zip(batch.keys, batch.attempts, batch.indices, batch.token_ids, strict=True)), batch


async def test_each_router_is_sent_its_own_requests(outputs, sessions, running):
    requests = [running(1)[0], running(2, "two", attempt=3)[0], running(3)[0]]
    for index in range(3):  # the same list again, so rows are not grouped again
        outputs.deliver(step(requests, index=index))
        assert index == 0 or sessions.session("one").wake.is_set()  # at first the stream itself has set it
        assert told(sessions, "one")[0] == [(1, 0, index, 101), (3, 0, index, 103)]
        assert told(sessions, "two")[0] == [(2, 3, index, 102)]
    others = [requests[1], running(4)[0]]
    outputs.deliver(step(others))
    assert told(sessions, "one")[0] == [(4, 0, 0, 104)]
    assert told(sessions, "two")[0] == [(2, 3, 0, 102)]


async def test_requests_without_a_leg_are_left_out(outputs, sessions, running):
    (first, _), (second, leg) = running(1), running(2)
    outputs.forget(first)
    sessions.close(leg)
    outputs.deliver(step([first, second, running(3)[0]]))
    assert told(sessions, "one")[0] == [(3, 0, 0, 103)]
    assert told(sessions, "two")[0] == []


async def test_first_steps_logprobs_and_ends(outputs, sessions, running):
    (one, leg), (two, _) = running(1), running(2)
    for request in (one, two):
        request.append(100 + request.key)
    one.finish_reason = FinishReason.LENGTH
    one.num_cached_tokens, before = 2, (PROMPT_TOKENS.value, CACHED_TOKENS.value)
    outputs.deliver(step([one, two], begun=[one, two], ended=[one], logprobs={1: Logprobs(-0.5, [9], [-0.25])}))
    assert (PROMPT_TOKENS.value - before[0], CACHED_TOKENS.value - before[1]) == (6, 2)
    rows, batch = told(sessions, "one")
    assert [key for key, *_ in rows] == [1, 2]
    assert [started.key for started in batch.started] == [1, 2]
    assert [(row.key, row.index, row.logprob) for row in batch.logprobs] == [(2, 0, -0.5)]
    [finished] = batch.finished
    assert (finished.key, finished.num_output_tokens, finished.reason) == (1, 1, types_pb2.FINISH_REASON_LENGTH)
    assert leg.over.done()


async def test_a_request_that_ends_without_a_step_is_reported_as_begun_and_errors_are_reported(
    outputs, sessions, running
):
    (ended, _), (failed, _) = running(1), running(2)
    ended.append(5)
    ended.finish_reason = FinishReason.STOP
    failed.finish_reason, failed.error = FinishReason.ERROR, NumericalError("NaN")
    outputs.deliver(StepOutput(ended=[ended, failed]))
    rows, batch = told(sessions, "one")
    assert (rows, [started.key for started in batch.started]) == ([], [1, 2])
    codes = [(row.key, row.num_output_tokens, row.error_code) for row in batch.finished]
    assert codes == [(1, 1, ""), (2, 0, "numerical_error")]
