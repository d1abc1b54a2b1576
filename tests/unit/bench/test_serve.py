import asyncio
import json
from pathlib import Path

import pytest

from bench import serve
from bench._load import phases
from bench._load.figures import figures, percentile
from bench._load.sse_client import Stream

METRICS = """\
baton_request_phase_seconds_sum{phase="queue",model="m"} 1.0
baton_request_phase_seconds_count{phase="queue",model="m"} 10.0
baton_request_phase_seconds_sum{model="m",phase="prefill"} %s
baton_request_phase_seconds_count{model="m",phase="prefill"} %s
"""


class Endpoint:
    """Streams an event per text, a millisecond apart, over keep-alive connections."""

    def __init__(self, status: int = 200, texts: tuple[str, ...] = ("", "a", "b", "c", "d"), tokens: int = 4) -> None:
        self.status, self.texts, self.tokens = status, texts, tokens
        self.bodies: list[dict] = []
        self.num_connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while head := await self._head(reader):
                await self._answer(head, reader, writer)
        finally:
            writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> str:
        try:
            return (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return ""

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith("GET"):
            body = json.dumps({"data": [{"id": "m"}]}) if "models" in head else METRICS % (len(self.bodies), 5)
            writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            writer.write_eof()
            return
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length"))
        self.bodies.append(json.loads(await reader.readexactly(length)))
        if self.status != 200:
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        events = [{"choices": [{"text": text}]} for text in self.texts]
        for event in [*events, {"choices": [], "usage": {"prompt_tokens": 128, "completion_tokens": self.tokens}}]:
            await self._event(writer, json.dumps(event))
        await self._event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")

    async def _event(self, writer: asyncio.StreamWriter, data: str) -> None:
        event = f"data: {data}\n\n"
        cut = len(event) // 2  # events may arrive in pieces
        for part in (event[:cut], event[cut:]):
            writer.write(f"{len(part.encode()):x}\r\n{part}\r\n".encode())
            await asyncio.sleep(0.001)


def bench(endpoint: Endpoint, tmp_path: Path, *args: str) -> tuple[int, dict]:
    async def run() -> int:
        server = await asyncio.start_server(endpoint, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        argv = ["--url", url, "--json", str(tmp_path / "out.json"), "--requests", "6", *args]
        async with server:
            return await asyncio.to_thread(serve.main, argv)

    code = asyncio.run(run())
    return code, json.loads((tmp_path / "out.json").read_text())


def test_every_request_is_sent_once_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    endpoint = Endpoint()
    code, report = bench(endpoint, tmp_path, "--concurrency", "1", "3")
    assert code == 0
    assert len(endpoint.bodies) == 12
    assert endpoint.bodies[0]["prompt"] != endpoint.bodies[1]["prompt"]
    first, second = report["runs"]
    assert (first["requests"], first["failed"], first["prompt_tokens"]) == (6, 0, 6 * 128)
    assert 0 < first["ttft_p50_s"] <= first["ttft_p99_s"] < 5
    assert first["tpot_p50_s"] > 0.0005
    assert second["output_tokens_per_s"] > first["output_tokens_per_s"]
    assert "baton bench serve" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [(("",), 64), (("a",), 1), (("abc",), 3)],
    ids=["only special tokens", "a single token", "all text in one event"],
)
def test_answers_without_two_times_have_no_tpot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: tuple[str, ...], tokens: int
):
    code, report = bench(Endpoint(texts=texts, tokens=tokens), tmp_path, "--concurrency", "2")
    run = report["runs"][0]
    assert (code, run["failed"], run["without_tpot"]) == (0, 0, 6)
    assert run["tpot_p50_s"] is None
    shown = capsys.readouterr().out
    assert "TPOT leaves out 6 of 6 requests: fewer than two tokens with text" in shown
    assert "nan" not in shown


def test_a_client_that_waited_for_a_core_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, report = bench(Endpoint(), tmp_path, "--concurrency", "2")
    run = report["runs"][0]
    assert 0 <= run["client_waited_s"] < run["elapsed_s"]
    assert "for a core" in serve.reports.text(report | {"runs": [run | {"client_waited_s": run["elapsed_s"] / 2}]})
    assert "for a core" not in serve.reports.text(report | {"runs": [run | {"client_waited_s": 0.0}]})


def test_connections_are_kept(tmp_path: Path):
    endpoint = Endpoint()
    bench(endpoint, tmp_path, "--concurrency", "2", "--model", "m")
    assert endpoint.num_connections == 2 + 2  # two workers, and the metrics are read twice


def test_failures_are_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, report = bench(Endpoint(status=503), tmp_path, "--concurrency", "2")
    assert code == 1
    assert report["runs"][0]["failed"] == 6
    assert "503 busy" in capsys.readouterr().out


def test_phases_are_means_between_two_readings():
    before, after = phases.parse(METRICS % (2.0, 10)), phases.parse(METRICS % (3.0, 14))
    assert phases.between(before, after) == {"prefill": 0.25}


def test_phases_of_a_restarted_or_missing_router_are_left_out():
    before = phases.parse(METRICS % (2.0, 10))
    assert phases.between(before, {}) == {}
    assert phases.between(before, phases.parse(METRICS % (0.5, 4))) == {}


def test_phases_reach_the_report(tmp_path: Path):
    _, report = bench(Endpoint(), tmp_path, "--concurrency", "1")
    assert report["runs"][0]["phases_s"] == {}  # the endpoint's counters do not change


def test_figures_of_known_streams():
    streams = [Stream(0.0, [1.0, 1.1, 1.2], 1.2, 200, 10, 3), Stream(0.0, [2.0, 2.4], 2.4, 200, 10, 2), Stream(0.0)]
    found = figures(streams, elapsed_s=2.0)
    assert (found["requests"], found["failed"]) == (3, 1)
    assert found["output_tokens_per_s"] == 2.5
    assert (found["ttft_p50_s"], found["ttft_p99_s"]) == (1.0, 2.0)
    assert found["tpot_p50_s"] == pytest.approx(0.1)
    assert found["itl_p99_s"] == pytest.approx(0.4)


def test_only_streams_with_two_tokens_and_two_times_have_a_tpot():
    ordinary, one_token = Stream(0.0, [1.0, 1.2], 1.2, 200, 10, 3), Stream(0.0, [1.0], 1.0, 200, 10, 1)
    special = Stream(0.0, [2.0], 2.0, 200, 10, 64)  # without text, only the time of its end is known
    found = figures([ordinary, one_token, special, special], elapsed_s=2.0)
    assert found["tpot_p50_s"] == found["tpot_mean_s"] == pytest.approx(0.1)
    assert found["without_tpot"] == 3


def test_percentiles_are_nearest_rank():
    assert [percentile(range(1, 101), p) for p in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7.0
