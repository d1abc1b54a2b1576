"""What `baton chaos` sees of an answer, what it counts as broken, and that a wrong answer does not slip through."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fleet import chaos_report
from fleet.chaos_client import Answer, Choice, ask
from fleet.chaos_faults import FAULTS, Outcome
from fleet.chaos_questions import Question, question

pytestmark = pytest.mark.anyio

Serve = Callable[[asyncio.StreamWriter], object]


@asynccontextmanager
async def endpoint(*pieces: bytes | float, status: str = "200 OK") -> AsyncIterator[str]:
    """A server that sends these bytes to everybody, waits where it finds a number, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode())
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
            else:
                await asyncio.sleep(piece)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def event(text: str, index: int = 0, finish_reason: str | None = None) -> bytes:
    row = {"index": index, "text": text, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [row]}).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"
ASKED = Question("0 topic", {"prompt": "x"})


def outcome(*answers: Answer) -> Outcome:
    return Outcome(FAULTS[0], list(answers))


def answer(text: str = "abcd", **fields: object) -> Answer:
    whole = Answer(ASKED, {0: Choice(text, "length", [("a", -1.5)])}, num_output_tokens=4, complete=True)
    for name, value in fields.items():
        setattr(whole, name, value)
    return whole


async def test_a_stream_is_put_together_choice_by_choice():
    pieces = [event("a"), event("x", 1), event("b", 0, "length"), event("y", 1, "stop"), USAGE, DONE]
    async with endpoint(*pieces) as url:
        got = await ask(url, Question("0 topic", {"n": 2}), 5)
    assert got.choices == {0: Choice("ab", "length"), 1: Choice("xy", "stop")}
    assert (got.failed, got.complete, got.num_output_tokens) == (False, True, 4)


async def test_silence_counts_for_the_choice_that_is_silent():
    pieces = [event("a"), event("x", 1), 0.2, event("b", 0, "length"), 0.2, event("y", 1, "length"), DONE]
    async with endpoint(*pieces) as url:
        got = await ask(url, Question("0 topic", {"n": 2}), 5)
    assert 0.4 <= got.longest_stall_s < 2


@pytest.mark.parametrize(
    ("pieces", "status", "said"),
    [
        ([event("a")], "200 OK", "broke off"),
        ([event("a"), b'data: {"error":{"message":"lost"}}\n\n'], "200 OK", "lost"),
        ([b'{"error":{}}'], "503 Service Unavailable", "503"),
        ([event("a"), 3.0, DONE], "200 OK", "no end"),
    ],
)
async def test_what_does_not_come_to_its_end_has_failed(pieces: list[bytes | float], status: str, said: str):
    async with endpoint(*pieces, status=status) as url:
        got = await ask(url, ASKED, 0.5)
    assert got.failed
    assert said in got.error


async def test_a_client_that_hangs_up_has_not_failed():
    async with endpoint(event("a"), event("b"), event("c"), 3.0) as url:
        got = await ask(url, ASKED, 2, max_events=2)
    assert (got.failed, got.hung_up, got.choices[0].text[:2]) == (False, True, "ab")
    assert got.longest_stall_s < 1


async def test_every_promise_kept():
    reference = {ASKED: answer()}
    assert chaos_report.broken_promises([outcome(answer())], reference, 3.0) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (outcome(answer("abXd")), "choice 0 from character 2 on"),
        (outcome(answer("abc")), "from character 3"),
        (outcome(answer(choices={0: Choice("abcd", "length", [("a", -1.6)])})), "log-probabilities from token 0 on"),
        (outcome(answer(choices={0: Choice("abcd", "stop", [("a", -1.5)])})), "ended by stop, not length"),
        (outcome(answer(choices={})), "differs"),
        (outcome(answer(num_output_tokens=5)), "(5 tokens, not 4)"),
        (outcome(answer("bc", hung_up=True, complete=False)), "from character 0"),
        (outcome(answer(error="lost", complete=False)), "failed: 0 topic: lost"),
        (outcome(answer(longest_stall_s=3.2)), "stalled for 3.20 s"),
        (Outcome(FAULTS[0], held={"decode-0": (2, 0)}), "decode-0 holds 2 blocks and 0 requests"),
        (Outcome(FAULTS[0], num_lost_blocks=2), "2 blocks are in no state"),
    ],
)
async def test_a_broken_promise_is_named(seen: Outcome, said: str):
    broken = chaos_report.broken_promises([seen], {ASKED: answer(longest_stall_s=0.1)}, 3.0)
    assert len(broken) == 1
    assert said in broken[0]


async def test_no_two_questions_begin_alike():
    heads = {question("m", topic, index).body["prompt"][:12] for topic in ("a", "b") for index in range(60)}
    assert len(heads) == 120
