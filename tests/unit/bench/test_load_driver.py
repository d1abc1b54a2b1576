"""The driver against an endpoint with known times."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator

import pytest

from bench._load import arrivals, lengths, workload
from bench._load.driver import Driver
from bench._load.figures import code_of, figures
from bench._load.target import Target
from bench._load.workload import Shape

FIRST_S, GAP_S, NUM_TOKENS = 0.2, 0.04, 4
SHAPE = Shape("m", lengths.parse("8"), lengths.parse(str(NUM_TOKENS)))


class Paced:
    """Answers with the first token after 200 ms, and one every 40 ms; or with what `answer` says."""

    def __init__(self, answer: bytes = b"", num_tokens: int = NUM_TOKENS) -> None:
        self.answer, self.num_tokens = answer, num_tokens
        self.num_open, self.most_open, self.num_connections = 0, 0, 0
        self.asked: list[float] = []  # time of each request
        self.sent: list[list[float]] = []  # time of each token of its answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    writer.write(b'HTTP/1.0 200 OK\r\n\r\n{"data": [{"id": "m"}]}')
                    break
                length = next(
                    int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
                )
                await reader.readexactly(length)
                self.num_open += 1
                self.most_open = max(self.most_open, self.num_open)
                await self._answer(writer)
                self.num_open -= 1
                if b"Connection: close" in self.answer:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may have ended before a connection that it accepted last
                writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        if self.answer:
            writer.write(self.answer)
            return
        began_s, times = time.monotonic(), list[float]()
        self.asked.append(began_s)
        self.sent.append(times)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(self.num_tokens):
            due_s = began_s + FIRST_S + number * GAP_S
            await asyncio.sleep(max(due_s - time.monotonic(), 0.001))  # let readers run before a late timer
            times.append(time.monotonic())
            self._event(writer, json.dumps({"choices": [{"text": f"t{number}"}]}))
        usage = {"prompt_tokens": 8, "completion_tokens": self.num_tokens}
        self._event(writer, json.dumps({"choices": [], "usage": usage}))
        self._event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")

    def _event(self, writer: asyncio.StreamWriter, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


async def serve(endpoint: Paced) -> AsyncIterator[Target]:
    server = await asyncio.start_server(endpoint, "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1])


def asked(number: int) -> list[workload.Conversation]:
    return list(itertools.islice(workload.conversations(SHAPE, random.Random(0)), number))


def test_a_closed_loop_keeps_its_concurrency():
    endpoint = Paced()

    async def run() -> Driver:
        async for target in serve(endpoint):
            driver = Driver(target, 5.0)
            await driver.closed(asked(12), 4)
            return driver
        raise AssertionError

    found = figures(asyncio.run(run()).streams, 1.0, slo_ttft_s=0.001)
    assert (endpoint.most_open, endpoint.num_connections) == (4, 4)
    assert (found["requests"], found["failed"], found["output_tokens"]) == (12, 0, 12 * NUM_TOKENS)
    assert found["goodput_per_s"] == 0.0


def test_an_open_loop_does_not_wait_for_answers():
    endpoint = Paced()

    async def run() -> Driver:
        async for target in serve(endpoint):
            driver = Driver(target, 5.0)
            await driver.open(itertools.islice(zip(arrivals.times(200.0, 0, random.Random(0)), asked(20)), 20))  # noqa: B905
            return driver
        raise AssertionError

    driver = asyncio.run(run())
    assert len(driver.streams) == 20
    assert all(stream.ok for stream in driver.streams)
    assert endpoint.most_open > 8  # requests take 320 ms each, and one arrives every 5 ms


def test_unfinished_requests_are_cut_off():
    async def run() -> Driver:
        async for target in serve(Paced(num_tokens=1000)):
            driver = Driver(target, 5.0)
            due = zip((0.0, 0.0, 3 * FIRST_S), asked(3), strict=False)
            await driver.open(due, finish=False)
            return driver
        raise AssertionError

    driver = asyncio.run(run())
    assert not driver.streams
    assert len(driver.hung_up) >= 2  # the last one may not have been sent
    assert any(stream.times for stream in driver.hung_up)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 429 Busy\r\nContent-Length: 4\r\n\r\nbusy", "429"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\ndata: {"error":{"a":1}}\n\n', "broken stream"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\ndata: {"choices":[{"text":"a"}]}', "broken stream"),
        (b"nonsense\r\n\r\n", "no answer"),
    ],
)
def test_errors_are_counted_by_kind(answer: bytes, code: str):
    async def run() -> Driver:
        async for target in serve(Paced(answer)):
            driver = Driver(target, 5.0)
            await driver.closed(asked(2), 1)
            return driver
        raise AssertionError

    assert [code_of(stream) for stream in asyncio.run(run()).streams] == [code, code]


def test_an_unreachable_endpoint_is_counted():
    driver = Driver(Target("127.0.0.1", 1), 2.0)
    asyncio.run(driver.closed(asked(1), 1))
    assert code_of(driver.streams[0]) == "no answer"


def test_times_are_those_at_which_the_endpoint_sent():
    """Each token is seen before the next one is sent. (`baton bench agreement` compares with another client.)"""
    endpoint = Paced()

    async def run() -> Driver:
        async for target in serve(endpoint):
            driver = Driver(target, 5.0)
            await driver.closed(asked(5), 1)
            return driver
        raise AssertionError

    off_s = []
    for stream, asked_s, sent in zip(asyncio.run(run()).streams, endpoint.asked, endpoint.sent, strict=True):
        assert len(stream.times) == len(sent) == NUM_TOKENS
        seen = [at for pair in zip(sent, stream.times, strict=True) for at in pair]
        assert sorted([*stream.times, *sent, stream.began, asked_s]) == [stream.began, asked_s, *seen]
        known = (sent[0] - asked_s, (sent[-1] - sent[0]) / (NUM_TOKENS - 1), sent[-1] - asked_s)
        told = (stream.ttft_s, stream.tpot_s, stream.e2e_s)
        off_s.append(max(abs(one - other) for one, other in zip(told, known, strict=True)))
    assert min(off_s) < 0.01  # a busy machine may delay some of them


@pytest.mark.anyio
@pytest.mark.parametrize(("ends", "failed"), [(b"data: [DONE]\n\n", 0), (b"", 1)])
async def test_an_answer_may_end_with_its_connection_but_not_before_it_says_so(ends: bytes, failed: int):
    events = b'data: {"choices": [{"text": "a"}]}\n\ndata: {"usage": {"prompt_tokens": 8, "completion_tokens": 1}}\n\n'
    async for target in serve(Paced(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + events + ends)):
        driver = Driver(target, 10.0)
        await driver.closed(asked(2), 1)
        assert figures(driver.streams, 1.0)["failed"] == 2 * failed
