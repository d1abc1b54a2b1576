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
