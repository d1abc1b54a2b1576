"""Measurements of routers: streams that end early are left out, and missing figures are shown as such."""

import asyncio
import math

import pytest

from baton.errors import BatonError
from bench import router
from bench._router.openai import STEP_S, Connection

pytestmark = pytest.mark.anyio


@pytest.fixture
async def port():
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)

    async def step():
        while True:
            await asyncio.sleep(STEP_S)
            for connection in list(Connection.streams):
                connection.step()

    stepping = asyncio.create_task(step())
    yield server.sockets[0].getsockname()[1]
    stepping.cancel()
    server.close()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_backend_streams_the_requested_number_of_tokens(port, name):
    (stream,) = await router._requests(port, 1, 1, {"stream": True, name: 4})
    assert stream.ok
    assert len(stream.times) == 4


async def test_a_broken_stream_gives_no_figure(port, monkeypatch):
    monkeypatch.setattr(Connection, "step", lambda connection: connection._transport.abort())
    with pytest.raises(BatonError, match="connection lost"):
        await router._requests(port, 1, 1, {"stream": True, "max_tokens": 4})


def test_a_table_without_all_figures():
    ours = {"tiny": 1000.0, "ttft_p50": 0.002, "added_p50": 0.001, "token": 2e-5, "tokens_per_s": 20000.0, "long": 4e-3}
    theirs = {"tiny": 4000.0, "ttft_p50": 0.04, "added_p50": math.nan}
    table = router._table({"baton": ours, "other": theirs})
    assert "nan" not in table
    assert table.splitlines()[-1].split()[3:] == ["0.25x", "20.00x", "–", "–", "–", "–", "–"]
