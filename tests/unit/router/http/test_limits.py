"""What is accepted or refused before a request is understood; API keys; probes."""

import asyncio
import json
import logging

import pytest

from baton.errors import ConfigError
from router.http import exchange
from router.http import protocol as http_protocol
from router.http.auth import APIKeys

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
CHAT_PATH = "/v1/chat/completions"


async def talk(router, data, *, until_closed=True):
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await (reader.read() if until_closed else reader.read(4096))
    finally:
        writer.close()


def error_code(answer):
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


async def test_too_large_a_body_is_413(router, dispatch):
    body = b'{"model":"tiny","prompt":"' + b"a" * (exchange.MAX_BODY_BYTES + 10) + b'"}'
    answer = await router.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"

    async def chunks():
        for _ in range(9):
            yield b"a" * 2**20

    answer = await router.client.post("/v1/completions", content=chunks())
    assert answer.status_code == 413
    assert not dispatch.jobs


async def test_an_excessive_content_length_is_refused_unread(router):
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n".encode()
    assert b" 413 " in await talk(router, head)


async def test_slow_headers_are_408_and_idle_connections_are_closed(make_app, serve, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    async with serve(make_app()) as router:
        assert b" 408 " in await talk(router, b"GET /health HTTP/1.1\r\nHost:")
        assert await talk(router, b"") == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 1_000_000,
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n",
    ],
)
async def test_oversized_headers_are_431(router, head):
    answer = await talk(router, head)
    assert b" 431 " in answer
    assert b"x-request-id: req-" in answer
    assert error_code(answer) == "headers_too_large"


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\n\n", b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\nA B: c\r\n\r\n"]
)
async def test_malformed_requests_are_400(router, data):
    answer = await talk(router, data)
    assert b" 400 " in answer
    assert error_code(answer) == "invalid_value"


async def test_requests_on_one_connection_are_answered_in_order(router):
    get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await talk(router, get + get + last)
    assert answer.count(b'{"status":"ok"}') == 2
    assert answer.endswith(b'{"status":"ready"}')


async def test_bodies_must_be_json(router):
    answer = await router.client.post(CHAT_PATH, content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    answer = await router.client.post(CHAT_PATH, content=b"{")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT_PATH, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nothing", 404),
        ("POST", "/v1/images/generations", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/metrics", 200),
        ("GET", "/health", 200),
        ("GET", "/ready", 200),
    ],
)
async def test_every_route_answers_with_a_request_id(router, method, path, status):
    answer = await router.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["x-request-id"]
    if status >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_documentation_names_the_generating_routes(router):
    document = (await router.client.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models"} <= set(document["paths"])
    assert "messages" in document["components"]["schemas"]["ChatBody"]["properties"]


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2:3_x", True), ("x" * 129, False), ("a b", False), ("é", False)])
async def test_a_valid_request_id_is_kept(router, dispatch, given, kept):
    answer = await router.client.post(CHAT_PATH, json=CHAT, headers={"x-request-id": given.encode()})
    assert (answer.headers["x-request-id"] == given) == kept
    await router.client.post(CHAT_PATH, json=CHAT, headers={"x-request-id": given.encode()})
    assert len({job.request_id for job in dispatch.jobs}) == 2


async def test_ready_follows_the_fleet(router, dispatch):
    dispatch.ready = False
    answer = await router.client.get("/ready")
    assert (answer.status_code, set(answer.json())) == (503, {"status"})
    assert (await router.client.get("/health")).status_code == 200


PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/tiny", "/metrics", "/docs", "/nothing"]
ODD_PATHS = [
    "//health",
    "/health/",
    "/health/../v1/models",
    "/Health",
    "/%68ealth/x",
    "/v1/models?x=/health",
    "/ready/x",
]


async def test_every_route_requires_a_key(make_app, serve, dispatch, caplog):
    caplog.set_level(logging.DEBUG)
    async with serve(make_app(keys=["sk-canary", "other"])) as router:
        for path in PATHS + ODD_PATHS:
            for method in ("GET", "POST", "DELETE", "OPTIONS"):
                for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sk-canary"}):
                    answer = await router.client.request(method, path, headers=header)
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
        for key in ("sk-canary", "other"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await router.client.post(CHAT_PATH, json=CHAT, headers=headers)).status_code == 200
        assert (await router.client.get("/health")).status_code == 200
        assert (await router.client.get("/ready")).status_code == 200
        metrics = (await router.client.get("/metrics", headers={"authorization": "Bearer other"})).text
    assert "canary" not in caplog.text + metrics
    assert "hello" not in caplog.text + metrics
    salts = [job.cache_salt for job in dispatch.jobs]
    assert len(set(salts)) == 2
    assert all(salts)


async def test_without_keys_the_cache_salt_is_empty(router, dispatch):
    await router.client.post(CHAT_PATH, json=CHAT)
    assert dispatch.jobs[0].cache_salt == b""


def test_keys_come_from_file_and_environment(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# team a\nkey-a\n\n  key-b  \n")
    keys = APIKeys.load(str(path), "key-c, key-d")
    for key in ("key-a", "key-b", "key-c", "key-d"):
        assert keys.tenant(f"Bearer {key}").salt
    assert not APIKeys.load("", " , ")


@pytest.mark.parametrize("content", [None, b"", b"# only this\n", b"\xff\xfe"])
def test_a_key_file_without_keys_is_a_config_error(tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="--api-key-file"):
        APIKeys.load(str(path), "key")


async def test_a_long_prompt_does_not_hold_up_streams(router, dispatch, served_model, monkeypatch):
    """Encoding runs in a thread, while the event loop continues."""
    dispatch.facts.max_model_len = 0
    monkeypatch.setattr("router.openai.served_model.ServedModel._max_chars", lambda *_: 2**30)
    monkeypatch.setattr(served_model, "facts", served_model.facts.__class__(1024, 0, frozenset({1})))
    request = asyncio.create_task(
        router.client.post("/v1/completions", json={"model": "tiny", "prompt": "ab cd " * 100_000, "max_tokens": 1})
    )
    worst, last = 0.0, asyncio.get_running_loop().time()
    began = last
    while not request.done():
        await asyncio.sleep(0.001)
        now = asyncio.get_running_loop().time()
        worst, last = max(worst, now - last), now
    assert (await request).status_code == 200
    assert worst < (last - began) / 2
