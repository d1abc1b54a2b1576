"""Any bytes as a body, and any JSON in any field, at the ASGI level: always a well-formed answer, never a 5xx."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.openai.chat_schema import ChatBody
from router.openai.completion_schema import CompletionBody

FIELDS = sorted({name for kind in (ChatBody, CompletionBody) for name in kind.__struct_fields__})
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5)
BODIES = st.binary(max_size=200) | OBJECTS.map(
    lambda fields: json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}]} | fields).encode()
)
HEADERS = st.lists(
    st.tuples(st.sampled_from([b"authorization", b"x-request-id", b"content-length"]), st.binary(max_size=40)),
    max_size=3,
)


class Outlet:
    """A connection that keeps the answer to a request, whose body is complete or not."""

    is_full = asks_first = False

    def __init__(self, on_end, given=None):
        self.on_end, self.status, self.headers, self.body = on_end, 0, [], b""
        self.has_body, self.take_body = given is not None, lambda: given

    def start(self, status, headers):
        self.status, self.headers = status, headers

    def write(self, data, *, more):
        self.body += data
        if not more:
            self.on_end()

    def inserter(self, before, after):
        return None

    def hold(self, held):
        pass

    def abort(self):
        pytest.fail("a connection is dropped")


async def ask(app, path, body, headers):
    """Send a request; return the answer."""
    inbox = asyncio.Queue()
    outlet = Outlet(lambda: inbox.put_nowait({"type": "http.disconnect"}), body)
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    async with asyncio.timeout(20):
        await app(scope | {"headers": headers, "extensions": {"baton.outlet": outlet}}, inbox.get, None)
    return outlet


def test_whatever_is_asked_is_answered(make_app):
    app = make_app()

    @settings(max_examples=250, deadline=None)
    @given(path=st.sampled_from(PATHS), body=BODIES, headers=HEADERS)
    def answered(path, body, headers):
        answer = asyncio.run(ask(app, path, body, headers))
        assert 200 <= answer.status < 500
        assert all(b"\r" not in value and b"\n" not in value for _, value in answer.headers)
        if answer.status >= 400:
            assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}

    answered()


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_before_its_body_is_there(make_app, path):
    async def leave():
        async def receive():
            return {"type": "http.disconnect"}

        outlet = Outlet(lambda: pytest.fail("nobody reads this"))
        scope = {"type": "http", "method": "POST", "raw_path": path.encode(), "headers": []}
        async with asyncio.timeout(5):
            await make_app()(scope | {"extensions": {"baton.outlet": outlet}}, receive, None)
        assert not outlet.status

    asyncio.run(leave())
