"""Two clients against an endpoint with known times: the table and the exit code."""

import shutil

import numpy as np
import pytest

from baton.errors import BatonError
from bench import agreement
from bench._load.sse_client import Stream


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("tolerance", "code"), [(10.0, 0), (0.0, 1)])
def test_both_clients_send_equal_load_and_the_exit_code_compares_them(endpoint, capsys, tolerance, code):
    paced, url = endpoint
    flags = {"--base-url": url, "--model": "m", "--requests": 2, "--rate": 50}
    flags |= {"--output-tokens": 4, "--tolerance": tolerance}
    assert agreement.main([str(part) for flag in flags.items() for part in flag]) == code
    assert len(paced.sent) == agreement.WARM_UP + 2 * 2  # of both clients
    table = capsys.readouterr().out
    for name, percent in agreement.SHOWN:
        assert f"{name} p{percent}" in table
    assert "late" in table


def test_an_interval_holds_the_true_ratio_and_narrows_with_more_requests():
    source = np.random.default_rng(1)
    widths = []
    for number in (100, 1600):
        ours, theirs = 1.1 * source.lognormal(3, 0.3, number), source.lognormal(3, 0.3, number)
        low, high = agreement.interval(ours, theirs, 90)
        assert low < 1.1 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    same = np.full(5, 7.0)
    assert agreement.interval(2 * same, same, 50) == (2.0, 2.0)


def test_our_times_start_when_requests_are_sent():
    stream = Stream(10.0, [10.5, 11.0], 11.0, 200, 1, 3, sent=10.2)
    assert agreement._latency_s(stream, "ttft") == pytest.approx(0.3)
    assert agreement._latency_s(stream, "e2e") == pytest.approx(0.8)
    assert agreement._latency_s(stream, "tpot") == pytest.approx(0.25)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_failed_request_is_reported(endpoint):
    paced, url = endpoint
    paced.answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with pytest.raises(BatonError, match="2 requests failed"):
        agreement.main(["--base-url", url, "--model", "m", "--requests", "1", "--rate", "50"])


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


def test_times_come_from_curls_trace_even_across_midnight(tmp_path):
    (tmp_path / "trace").write_text(TRACE)
    usage = 'data: {"usage": {"prompt_tokens": 7, "completion_tokens": 4}}'
    stream = agreement._stream(f"{usage}\n\ndata: [DONE]\n\n", tmp_path / "trace")
    assert (stream.num_prompt_tokens, stream.num_output_tokens) == (7, 4)
    assert (stream.ttft_s, stream.e2e_s) == (pytest.approx(0.0705), pytest.approx(0.11))


def test_tokens_that_arrived_together_had_waited_for_the_client(tmp_path):
    assert not agreement.was_late(Stream(0.0, [1.0, 1.002, 1.004]))
    assert not agreement.was_late(Stream(0.0, [1.0, 1.002, 1.0021]))  # the first is what counts
    assert agreement.was_late(Stream(0.0, [1.0, 1.0001, 1.004]))
    bunched = TRACE.replace('data: {"choices": [{"text": ""}]}', 'data: {"text": "a"}..data: {"text": "b"}')
    (tmp_path / "trace").write_text(bunched)
    usage = 'data: {"usage": {"prompt_tokens": 7, "completion_tokens": 4}}'
    assert agreement.was_late(agreement._stream(f"{usage}\n\ndata: [DONE]\n\n", tmp_path / "trace"))


def test_an_answer_without_done_is_incomplete(tmp_path):
    (tmp_path / "trace").write_text(TRACE)
    assert not agreement._stream('{"error": "full"}', tmp_path / "trace").ok
