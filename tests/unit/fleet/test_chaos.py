"""How `baton chaos` records answers, and which answers break a guarantee."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleet import cli, state
from fleet.chaos import report as chaos_report
from fleet.chaos.acts import nothing
from fleet.chaos.client import Answer, Choice, ask
from fleet.chaos.faults import FAULTS, Fault, Outcome
from fleet.chaos.fleet import LocalFleet
from fleet.chaos.questions import Question, answers_schema, question
from fleet.home import Home
from fleet.state import ProcessState

pytestmark = pytest.mark.anyio

Serve = Callable[[asyncio.StreamWriter], object]


@asynccontextmanager
async def endpoint(*pieces: bytes | float, status: str = "200 OK") -> AsyncIterator[str]:
    """Run a server that sends these bytes to every client, sleeps for each number, and then disconnects."""

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
ASKED = Question("0 topic", {"prompt": "x", "stream": True})


def outcome(*answers: Answer) -> Outcome:
    return Outcome(FAULTS[0], list(answers))


def answer(text: str = "abcd", **fields: object) -> Answer:
    whole = Answer(ASKED, {0: Choice(text, "length", [("a", -1.5)])}, num_output_tokens=4, complete=True)
    for name, value in fields.items():
        setattr(whole, name, value)
    return whole


async def test_choices_of_a_stream_are_assembled_separately():
    pieces = [event("a"), event("x", 1), event("b", 0, "length"), event("y", 1, "stop"), USAGE, DONE]
    async with endpoint(*pieces) as url:
        got = await ask(url, Question("0 topic", {"n": 2, "stream": True}), 5)
    assert got.choices == {0: Choice("ab", "length"), 1: Choice("xy", "stop")}
    assert (got.failed, got.complete, got.num_output_tokens) == (False, True, 4)


async def test_silence_is_counted_per_choice():
    pieces = [event("a"), event("x", 1), 0.2, event("b", 0, "length"), 0.2, event("y", 1, "length"), DONE]
    async with endpoint(*pieces) as url:
        got = await ask(url, Question("0 topic", {"n": 2, "stream": True}), 5)
    assert got.longest_wait_s < 0.4 <= got.longest_stall_s


async def test_a_stalled_stream_can_be_traced():
    pieces = [event("a"), 0.2, event("b", 0, "length"), DONE]
    async with endpoint(0.1, *pieces, status="200 OK\r\nX-Request-Id: req-7") as url:
        got = await ask(url, ASKED, 5)
    assert (got.request_id, got.stalled_at_s >= 0.1) == ("req-7", True)
    victim = answer(longest_stall_s=9.0, on_victim=True)
    assert outcome(answer(), got, victim).most_stalled is got


async def test_the_wait_for_a_first_token_is_not_a_stall():
    pieces = [event("a"), 0.3, event("x", 1), event("b", 0, "length"), event("y", 1, "length"), DONE]
    async with endpoint(0.2, *pieces) as url:
        got = await ask(url, Question("0 topic", {"n": 2, "stream": True}), 5)
    assert 0.3 <= got.longest_stall_s < got.longest_wait_s
    assert got.longest_wait_s >= 0.5


@pytest.mark.parametrize(
    ("pieces", "status", "said"),
    [
        ([event("a")], "200 OK", "broke off"),
        ([event("a"), b'data: {"error":{"message":"lost"}}\n\n'], "200 OK", "lost"),
        ([b'{"error":{}}'], "503 Service Unavailable", "503"),
        ([event("a"), 3.0, DONE], "200 OK", "not complete"),
    ],
)
async def test_an_incomplete_answer_has_failed(pieces: list[bytes | float], status: str, said: str):
    async with endpoint(*pieces, status=status) as url:
        got = await ask(url, ASKED, 0.5)
    assert got.failed
    assert said in got.error


async def test_a_client_that_hangs_up_has_not_failed():
    async with endpoint(event("a"), event("b"), event("c"), 3.0) as url:
        got = await ask(url, ASKED, 2, max_events=2)
    assert (got.failed, got.hung_up, got.choices[0].text[:2]) == (False, True, "ab")
    assert got.longest_stall_s < 1


async def test_an_answer_equal_to_its_reference_breaks_no_guarantee():
    reference = {ASKED: answer()}
    assert chaos_report.broken_guarantees([outcome(answer())], reference, 3.0) == []


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
        (outcome(answer(longest_wait_s=5.2)), "a first token took 5.20 s"),
        (Outcome(FAULTS[0], held={"decode-0": (2, 0)}), "decode-0 holds 2 blocks and 0 requests"),
        (Outcome(FAULTS[0], num_lost_blocks=2), "2 blocks are missing from all states"),
    ],
)
async def test_a_broken_guarantee_is_reported(seen: Outcome, said: str):
    broken = chaos_report.broken_guarantees([seen], {ASKED: answer(longest_stall_s=0.1, longest_wait_s=1.0)}, 3.0)
    assert len(broken) == 1
    assert said in broken[0]


async def test_no_two_completions_share_a_prefix():
    asked = [question("m", topic, index) for topic in ("a", "b") for index in range(60)]
    heads = [one.body["prompt"][:12] for one in asked if one.path == "/v1/completions"]
    assert len(set(heads)) == len(heads) == 90
    assert {one.path for one in asked} == {"/v1/completions", "/v1/chat/completions", "/v1/embeddings"}
    assert asked == [question("m", topic, index) for topic in ("a", "b") for index in range(60)]


async def test_each_turn_begins_with_the_turns_before():
    asked = (question("m", "a", index).body for index in range(48))
    turns = [body["messages"] for body in asked if "messages" in body and "response_format" not in body]
    longest = max(turns, key=len)
    assert len(longest) == 7
    assert all(longest[: len(turn)] == turn for turn in turns)


async def test_embeddings_are_compared_too():
    body = b'{"data":[{"embedding":[0.5,-1.0]}],"usage":{"prompt_tokens":3}}'
    async with endpoint(body, status=f"200 OK\r\nContent-Length: {len(body)}") as url:
        got = await ask(url, Question("0 topic", {"input": "x"}, "/v1/embeddings"), 5)
    assert (got.failed, got.choices[0].text) == (False, '[{"embedding": [0.5, -1.0]}]')
    assert got.longest_wait_s > got.longest_stall_s == 0.0


async def test_chats_and_schemas():
    delta = {"choices": [{"index": 0, "delta": {"content": '{"name":"otteronly","legs":5}'}, "finish_reason": "stop"}]}
    async with endpoint(b"data: " + json.dumps(delta).encode() + b"\n\n", DONE) as url:
        asked = Question("0 topic", {"messages": [], "response_format": {}, "stream": True}, "/v1/chat/completions")
        got = await ask(url, asked, 5)
    assert not got.failed
    broken = chaos_report.broken_guarantees([outcome(got)], {asked: got}, 3.0)
    assert broken == ["none: breaks its schema: 0 topic"]
    assert answers_schema('{"name":"otteronly","legs":4}')
    assert not answers_schema('{"name":"otter","legs":4}')


async def test_a_killed_routers_own_streams_may_break_off():
    cut = answer("ab", complete=False, error="reset", on_victim=True, longest_stall_s=9.0, longest_wait_s=9.0)
    assert chaos_report.broken_guarantees([outcome(cut)], {ASKED: answer()}, 3.0) == []
    wrong = answer("aX", complete=False, error="reset", on_victim=True)
    assert "differs" in chaos_report.broken_guarantees([outcome(wrong)], {ASKED: answer()}, 3.0)[0]


async def test_losing_a_node_to_packet_loss_breaks_a_guarantee():
    fault = Fault("loss", nothing, max_failovers=0)
    assert "failed over" in chaos_report.broken_guarantees([Outcome(fault, num_failovers=2)], {}, 3.0)[0]


def test_a_filter_that_matches_no_fault_is_an_error(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["chaos", "--only", "nonsense"]) == 1
    assert "no fault's name contains 'nonsense'. Available: " in capsys.readouterr().err


async def test_a_service_that_is_too_busy_to_answer_is_retried(tmp_path: Path):
    num_asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        num_asked += 1
        await reader.readuntil(b"\r\n\r\n")
        if num_asked > 2:
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbaton_kv_block_leaks_total 3.0\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/metrics"
    decode = ProcessState("decode-0", "decode", 7, "ready", metrics=url)
    state.write(Home(tmp_path), state.FleetState(0, "ready", "", "", "", "", ("model",), processes=[decode]))
    held = Home(tmp_path).lock()
    assert held is not None
    async with server:
        assert await asyncio.to_thread(LocalFleet(tmp_path).num_leaks) == 3
    os.close(held)
    assert num_asked == 3
