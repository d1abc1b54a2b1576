import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from baton.errors import BatonError, ConfigError
from fleet.chat_client import ChatClient, Reply


class Endpoint(ThreadingHTTPServer):
    """An OpenAI endpoint that sends prepared answers and records requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.pieces = ["It ", "chains ", "iterables ⛓."]
        self.fails: dict[str, Any] | None = None
        self.breaks_off = self.resets = False
        self.garbles = b""
        self.models = [{"id": "listed"}]
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": self.server.models}).encode())

    def do_POST(self) -> None:
        self.server.keys.append(self.headers.get("Authorization"))
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.fails:
            self._answer(429, json.dumps({"error": self.server.fails}).encode())
            return
        events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        events += [{"choices": [{"delta": {"content": piece}}]} for piece in self.server.pieces]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        events += [{"choices": [], "usage": {"completion_tokens": 3}}]
        body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
        if self.server.garbles:
            body = self.server.garbles
        elif not self.server.breaks_off:
            body += b"data: [DONE]\n\n"
        self._answer(200, body, num_missing=int(self.server.resets))

    def _answer(self, status: int, body: bytes, num_missing: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if num_missing else body)
        if num_missing:  # with unread data a connection is reset instead of closed
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def chat(endpoint: Endpoint, stdin: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "fleet", "chat", "--url", endpoint.url, *args]
    environment = {**os.environ, "NO_COLOR": "1", **env}
    return subprocess.run(argv, input=stdin, env=environment, capture_output=True, text=True, timeout=30)


def test_a_reply_streams_and_ends_with_its_usage(endpoint: Endpoint):
    reply = Reply()
    pieces = list(ChatClient(endpoint.url).stream({"model": "m", "messages": []}, reply))
    assert pieces == endpoint.pieces
    assert (reply.text, reply.finish_reason) == ("It chains iterables ⛓.", "stop")
    assert reply.usage == {"completion_tokens": 3}
    assert 0 < reply.ttft_s <= reply.total_s


def test_an_error_has_the_servers_message(endpoint: Endpoint):
    endpoint.fails = {"message": "come back later"}
    with pytest.raises(BatonError, match="come back later"):
        list(ChatClient(endpoint.url).stream({}, Reply()))


def test_an_answer_that_breaks_off_is_an_error(endpoint: Endpoint):
    endpoint.breaks_off = True
    with pytest.raises(BatonError, match="broke off"):
        list(ChatClient(endpoint.url).stream({}, Reply()))


def test_a_connection_that_is_reset_in_an_answer_is_an_error(endpoint: Endpoint):
    endpoint.resets = True
    with pytest.raises(BatonError, match="the answer broke off"):
        list(ChatClient(endpoint.url).stream({}, Reply()))


def test_an_answer_without_json_events_is_an_error(endpoint: Endpoint):
    endpoint.garbles = b"data: hello\n\n"
    with pytest.raises(BatonError, match="not a stream of JSON events: is it an OpenAI-compatible endpoint"):
        list(ChatClient(endpoint.url).stream({}, Reply()))


def test_an_unreachable_server_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"no answer from http://127.0.0.1:1: Connection refused$"):
        ChatClient("http://127.0.0.1:1").first_model()


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:99999", "http://127.0.0.1:http", "http://[::1", "ftp://x", "/v1", "x y", "http://x\ny"],
)
def test_an_invalid_address_is_named(address: str):
    with pytest.raises(ConfigError, match="is not the address of an HTTP endpoint: write it as http://"):
        ChatClient(address).first_model()


def test_an_address_needs_no_scheme(endpoint: Endpoint):
    assert ChatClient(endpoint.url.removeprefix("http://")).first_model() == "listed"


def test_an_endpoint_of_another_kind_is_named(endpoint: Endpoint):
    endpoint.models = []
    with pytest.raises(ConfigError, match="/v1/models lists no model: is it an OpenAI-compatible endpoint"):
        ChatClient(endpoint.url).first_model()


def test_a_piped_question_that_is_not_utf_8_is_still_asked(endpoint: Endpoint):
    argv = [sys.executable, "-m", "fleet", "chat", "--url", endpoint.url]
    assert subprocess.run(argv, input=b"caf\xe9?", capture_output=True, timeout=30).returncode == 0
    assert endpoint.asked[0]["messages"][0]["content"] == "caf\N{REPLACEMENT CHARACTER}?"


def test_a_piped_question_gets_the_answer_and_nothing_else(endpoint: Endpoint):
    done = chat(endpoint, "What does itertools.chain do?\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "It chains iterables ⛓.\n", "")
    assert endpoint.asked[0]["model"] == "listed"
    assert endpoint.asked[0]["messages"] == [{"role": "user", "content": "What does itertools.chain do?"}]


def test_flags_reach_the_request(endpoint: Endpoint, tmp_path: Path):
    (tmp_path / "keys").write_text("# ours\nsk-1\nsk-2\n")
    args = ("--model", "m", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "5")
    chat(endpoint, "hi", *args, "--api-key-file", str(tmp_path / "keys"))
    asked = endpoint.asked[0]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("m", 0, 5)
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert endpoint.keys == ["Bearer sk-1"]


def test_a_piped_question_that_fails_is_exit_code_1(endpoint: Endpoint):
    endpoint.fails = {"message": "come back later"}
    done = chat(endpoint, "hi")
    assert (done.returncode, done.stderr) == (1, "baton: error: come back later\n")


def test_a_conversation_keeps_its_turns_until_it_is_cleared(endpoint: Endpoint):
    """Run the chat in a pseudo-terminal, as a user would."""
    import pty

    parent, child = pty.openpty()
    argv = [sys.executable, "-m", "fleet", "chat", "--url", endpoint.url]
    env = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(argv, stdin=child, stdout=child, stderr=child, env=env)
    os.close(child)
    endpoint.pieces[0] = "\x1b]0;gotcha\x07It "
    shown = b""
    for line, marker in ((b"one\n", b"tokens/s"), (b"two\n", b"tokens/s"), (b"/clear\nthree\n", b"tokens/s")):
        os.write(parent, line)
        seen = len(shown)
        while marker not in shown[seen:]:
            shown += os.read(parent, 4096)
    os.write(parent, b"/quit\n")
    assert process.wait(10) == 0
    os.close(parent)
    assert [len(asked["messages"]) for asked in endpoint.asked] == [1, 3, 1]
    assert endpoint.asked[1]["messages"][1] == {"role": "assistant", "content": "".join(endpoint.pieces)}
    assert "chains" in shown.decode()
    assert b"\x1b]0;" not in shown


def test_without_a_fleet_it_says_how_to_start_one(tmp_path: Path):
    argv = [sys.executable, "-m", "fleet", "chat"]
    env = {**os.environ, "BATON_HOME": str(tmp_path)}
    done = subprocess.run(argv, input="hi", env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "baton up" in done.stderr
