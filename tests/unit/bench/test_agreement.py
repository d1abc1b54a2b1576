"""Two clients against an endpoint whose times are known: the table, and what the exit code says."""

import asyncio
import shutil
import threading
from collections.abc import Iterator

import pytest

from bench import agreement
from tests.unit.bench.test_load_driver import Paced


@pytest.fixture
def endpoint() -> Iterator[tuple[Paced, str]]:
    """A server on a thread of its own, since the bench has its own event loops; and its address."""
    loop, paced = asyncio.new_event_loop(), Paced()
    server = loop.run_until_complete(asyncio.start_server(paced, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield paced, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("tolerance", "code"), [(10.0, 0), (0.0, 1)])
def test_both_clients_ask_the_same_and_the_code_tells_whether_they_agree(endpoint, capsys, tolerance, code):
    paced, url = endpoint
    flags = {"--base-url": url, "--model": "m", "--requests": 2, "--rate": 50}
    flags |= {"--output-tokens": 4, "--tolerance": tolerance}
    assert agreement.main([str(part) for flag in flags.items() for part in flag]) == code
    assert len(paced.sent) == agreement.WARM_UP + 2 * 2  # requests of two clients
    table = capsys.readouterr().out
    for name in agreement.SHOWN:
        assert name.removesuffix("_s") in table


@pytest.mark.parametrize("flags", [["--requests", "0"], ["--rate", "0"]])
def test_no_request_is_no_measurement(capsys, flags):
    with pytest.raises(SystemExit):
        agreement.main(flags)
    assert "at least 1" in capsys.readouterr().err


def test_without_curl_there_is_nothing_to_compare_with(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert agreement.main([]) == 2
    assert "curl" in capsys.readouterr().err


TRACE = """23:59:59.900000 == Info:   Trying 127.0.0.1:8000...
23:59:59.999000 == Info: Connected to 127.0.0.1 (127.0.0.1) port 8000 (#0)
00:00:00.020000 => Send header, 170 bytes (0xaa)
0000: POST /v1/completions HTTP/1.1
00:00:00.000000 => Send data, 20 bytes (0x14)
00:00:00.049000 <= Recv header, 17 bytes (0x11)
00:00:00.049500 <= Recv data, 80 bytes (0x50)
0000: data: {"choices": [{"text": ""}]}
00:00:00.069500 <= Recv data, 80 bytes (0x50)
0000: data: {"choices": [{"te
0040: xt": "a"}]}
00:00:00.109000 <= Recv data, 80 bytes (0x50)
0000: data: {"choices": [{"text": "b"}]}
00:00:00.209000 <= Recv data, 80 bytes (0x50)
0000: data: [DONE]
"""


def test_times_are_those_of_the_trace_even_over_midnight(tmp_path):
    (tmp_path / "trace").write_text(TRACE)
    usage = 'data: {"usage": {"prompt_tokens": 7, "completion_tokens": 4}}'
    stream = agreement._stream(f"{usage}\n\ndata: [DONE]\n\n", tmp_path / "trace")
    assert (stream.num_prompt_tokens, stream.num_output_tokens) == (7, 4)
    assert (stream.ttft_s, stream.e2e_s) == (pytest.approx(0.0705), pytest.approx(0.11))


def test_an_answer_without_an_end_is_no_answer(tmp_path):
    (tmp_path / "trace").write_text(TRACE)
    assert not agreement._stream('{"error": "full"}', tmp_path / "trace").ok
