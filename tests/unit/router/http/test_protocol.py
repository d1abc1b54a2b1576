"""How a connection parses its bytes: upgrades, trailers, pieces, and pipelined requests."""

import asyncio
import json

import pytest

from router.http import protocol as http_protocol

pytestmark = pytest.mark.anyio

BODY = json.dumps({"model": "tiny", "prompt": "hello"}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
LAST = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def talk(router, *parts):
    """Send parts, each after the one before was read; return all that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    async with asyncio.timeout(10):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        answer = await reader.read()
    writer.close()
    return answer


def statuses(answer):
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("upgrade", [H2C, H2C.replace(b"h2c", b"websocket")])
@pytest.mark.parametrize(
    "parts",
    [
        (LENGTH + b"\r\n" + BODY, LAST),
        (LENGTH + b"\r\n" + BODY + LAST,),
        (LENGTH[:7], LENGTH[7:] + b"\r\n" + BODY[:5], BODY[5:], LAST),
        (CHUNKED + b"\r\n", CHUNK + b"0\r\n\r\n" + LAST),
    ],
)
async def test_an_upgrade_is_answered_in_http_1(router, dispatch, upgrade, parts):
    first, *others = parts
    assert statuses(await talk(router, POST + upgrade + first, *others)) == [200, 200]
    assert len(dispatch.jobs) == 1
    assert statuses(await talk(router, GET + upgrade + b"\r\n" + GET + upgrade + b"\r\n" + LAST)) == [200, 200, 200]


async def test_upgrades_on_one_connection_are_limited(router):
    """Each one is parsed again with all bytes that were read after it."""
    answer = await talk(router, (GET + H2C + b"\r\n") * 40)
    assert len(statuses(answer)) < 20


async def test_connect_is_refused(router):
    assert statuses(await talk(router, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)) == [400]


@pytest.mark.parametrize(
    "trailer", [b"Authorization: Bearer other", b"Content-Type: text/plain", b"X-Request-ID: mine"]
)
async def test_trailers_are_dropped(make_app, serve, trailer):
    async with serve(make_app(keys=["sk-mine"])) as router:
        head = POST + b"Authorization: Bearer sk-mine\r\n" + CHUNKED + b"\r\n"
        answer = await talk(router, head + CHUNK + b"0\r\n" + trailer + b"\r\n\r\n" + LAST)
        assert statuses(answer) == [200, 200]
        assert b"mine" not in answer
        head = POST + CHUNKED + b"\r\n"
        answer = await talk(router, head + CHUNK + b"0\r\nAuthorization: Bearer sk-mine\r\n\r\n" + LAST)
        assert statuses(answer) == [401, 200]


@pytest.mark.parametrize(
    "headers",
    [
        b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
        b"Content-Type: application/json\r\nContent-Type: text/plain\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
    ],
)
async def test_ambiguous_requests_are_refused(router, dispatch, headers):
    body = CHUNK + b"0\r\n\r\n" if b"chunked" in headers else LENGTH + b"\r\n" + BODY
    assert statuses(await talk(router, POST + headers + (b"\r\n" if b"chunked" in headers else b"") + body)) == [400]
    assert not dispatch.jobs


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"zz\r\n", 400),
        (b"1\r\n \r\n" * (http_protocol.MAX_CHUNKS + 1), 400),
        (CHUNK + b"0\r\n" + b"A: %b\r\n" % (b"b" * 100) * 400, 431),
    ],
)
async def test_a_body_with_malformed_chunks_is_answered_with_400(router, dispatch, body, status):
    answer = await talk(router, POST + CHUNKED + b"\r\n", body)
    assert statuses(answer) == [status]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert not dispatch.jobs


@pytest.mark.parametrize("behind", [b"no request\r\n\r\n", POST + CHUNKED + b"\r\nzz\r\n"])
async def test_a_malformed_request_is_not_answered_before_the_one_ahead_of_it(router, behind):
    assert await talk(router, POST + LENGTH + b"\r\n" + BODY + behind) == b""


async def test_a_body_may_have_many_chunks(router):
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"1\r\n \r\n" * 10_000
    assert statuses(await talk(router, POST + CHUNKED + b"\r\n" + pieces + b"0\r\n\r\n" + LAST)) == [200, 200]


async def test_limits_apply_to_each_request_of_a_connection(router):
    large = GET + b"X: " + b"a" * 20_000 + b"\r\n\r\n"
    pieces = POST + CHUNKED + b"\r\n" + b"1\r\n \r\n" * 10_000 + CHUNK + b"0\r\n\r\n"
    assert statuses(await talk(router, large, large, pieces, pieces, LAST)) == [200] * 5


async def test_the_body_of_an_answered_request_may_arrive_before_the_next_request(make_app, serve, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    async with serve(make_app()) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        async with asyncio.timeout(10):
            writer.write(POST.replace(b"completions", b"nothing") + LENGTH + b"\r\n")
            assert statuses(await reader.read(4096)) == [404]
            writer.write(BODY)
            await asyncio.sleep(0.5)
            writer.write(LAST)
            assert statuses(await reader.read()) == [200]
        writer.close()


async def test_a_late_head_is_not_refused_in_the_middle_of_another_answer(make_app, serve, dispatch, monkeypatch):
    async def say_one(job, sink, handle):
        sink.on_tokens(dispatch.reply[:1], None)
        await asyncio.Event().wait()

    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    dispatch.script = say_one
    body = json.dumps({"model": "tiny", "prompt": "hello", "stream": True}).encode()
    async with serve(make_app()) as router:
        answer = await talk(router, POST + b"Content-Length: %d\r\n\r\n" % len(body) + body, GET)
    assert statuses(answer) == [200]


async def test_pipelined_requests_are_limited(router):
    answer = await talk(router, (GET + b"\r\n") * (http_protocol.MAX_PIPELINED + 2))
    assert len(statuses(answer)) < http_protocol.MAX_PIPELINED + 2


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/metrics", "/openapi.json", "/health"])
async def test_head_works_wherever_get_does(router, path):
    got, head = await router.client.get(path), await router.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


async def test_paths_are_matched_as_spelled(router, dispatch, make_app, serve):
    """A proxy that allows some paths may not have decoded them, or not in the same way."""
    for path in (b"/v1%2Fcompletions", b"/v1/completion%73", b"/v1/%2e/completions"):
        answer = await talk(router, POST.replace(b"/v1/completions", path) + LENGTH + b"\r\n" + BODY + LAST)
        assert statuses(answer) == [404, 200]
    assert not dispatch.jobs
    for path in ("/%6detrics", "/v1/%6dodels", "/v1/models%2Ftiny", "/openapi%2Ejson"):
        assert (await router.client.get(path)).status_code == 404
    assert (await router.client.get("/v1/models/t%69ny")).status_code == 200  # a name, which may need an encoding
    async with serve(make_app(keys=["sk-mine"])) as guarded:
        assert (await guarded.client.get("/%68ealth")).status_code == 401


EXPECT = POST + b"Expect: 100-continue\r\n"


async def test_expect_100_continue_is_answered(router, dispatch):
    answer = await talk(router, EXPECT + LENGTH + b"\r\n", BODY + LAST)
    assert statuses(answer) == [100, 200, 200]
    answer = await talk(router, EXPECT + LENGTH + b"\r\n" + BODY + LAST)  # without waiting
    assert statuses(answer) == [200, 200]
    assert len(dispatch.jobs) == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [(b"Content-Length: 9000000\r\n", 413), (LENGTH + b"Content-Type: text/plain\r\n", 415)],
)
async def test_expect_100_continue_is_refused_before_the_body(router, headers, status):
    """Nor may it send anything that could be taken for another request."""
    answer = await talk(router, EXPECT + headers + b"\r\n")
    assert statuses(answer) == [status]
    assert b"connection: close" in answer


async def test_a_body_with_content_encoding_is_415(router):
    answer = await router.client.post("/v1/completions", content=BODY, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_client_that_disconnects_ends_all_its_pipelined_requests(router, dispatch, caplog):
    """The answers to those before the last one were written to a closed connection, after they had been generated."""

    async def forever(job, sink, handle):
        while True:
            sink.on_tokens(dispatch.reply[:1], None)
            await asyncio.sleep(0.01)

    dispatch.script = forever
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    body = json.dumps({"model": "tiny", "prompt": "a", "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    writer.write((head + body) * 3)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    async with asyncio.timeout(5):
        await dispatch.handles[0].cancelled.wait()
    await asyncio.sleep(0.05)
    assert len(dispatch.jobs) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
