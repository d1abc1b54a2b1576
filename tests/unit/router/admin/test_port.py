import gc

import pytest

from baton.telemetry.exposition import Exposition
from router.admin.auth import AdminAuth
from router.admin.port import AdminApp
from router.http.auth import APIKeys
from router.http.exchange import Exchange
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/login", 200), ("/nothing", 404)])
async def test_nothing_of_an_answered_request_waits_for_the_garbage_collector(serve, path, status):
    app = AdminApp(AdminAuth("127.0.0.1", APIKeys(()), ""), Exposition(), None, None)

    def left():
        return {id(found) for found in gc.get_objects() if type(found) is Exchange}

    async with serve(app) as router:
        gc.collect()
        gc.disable()
        before = left()
        try:
            assert (await router.client.get(path)).status_code == status
            await until(lambda: left() <= before)
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"key":"sk-a"}', 200),
        (b'{"key":"sk-b"}', 401),
        (b"{}", 401),
        (b'{"key":1}', 400),
        (b'["sk-a"]', 400),
        (b'{"key":"\xff"}', 400),
        (b'{"key":"sk-a","x":' + b"[" * 100_000, 400),
        (b'{"key":"' + b"x" * 5_000_000 + b'"}', 400),
        (b"{" + b'"":"",' * 200_000 + b'"key":"sk-a"}', 400),
    ],
)
async def test_a_login_is_small_and_json(serve, body, status):
    """It needs no key, so anybody can send one."""
    app = AdminApp(AdminAuth("127.0.0.1", APIKeys(["sk-a"]), ""), Exposition(), None, None)
    async with serve(app) as router:
        answer = await router.client.post("/login", content=body)
        assert answer.status_code == status, answer.text
        assert status == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}
