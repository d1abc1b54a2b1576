"""Nothing keeps a request alive: the garbage collector rarely runs, and a refused body may have megabytes."""

import gc

import pytest

from router.http import turns
from router.http.exchange import Exchange
from tests.unit.router import hostile

pytestmark = pytest.mark.anyio


async def test_nothing_of_a_refused_request_waits_for_the_garbage_collector(router, monkeypatch):
    monkeypatch.setattr(turns, "PAUSES", 0)
    gc.collect()
    gc.disable()
    try:
        left = []
        for case in hostile.every():
            await router.client.post(case.path, content=case.body, headers={"content-type": "application/json"})
            if any(type(found) is Exchange for found in gc.get_objects(generation=0)):
                left.append(case.name)
                gc.collect()
    finally:
        gc.enable()
    assert not left
