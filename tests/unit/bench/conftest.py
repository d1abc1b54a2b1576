"""An endpoint for tests of code that runs its own event loop."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.unit.bench.test_load_driver import Paced


@pytest.fixture
def endpoint() -> Iterator[tuple[Paced, str]]:
    """Start a server in a thread, because benchmarks run their own event loops; yield it and its address."""
    loop, paced = asyncio.new_event_loop(), Paced()
    server = loop.run_until_complete(asyncio.start_server(paced, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield paced, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
