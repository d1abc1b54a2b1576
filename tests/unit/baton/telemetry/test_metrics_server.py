import urllib.error
import urllib.request

import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry, Counter

from baton.errors import ConfigError
from baton.telemetry.exposition import Exposition
from baton.telemetry.metrics_server import MetricsServer


def get(url: str, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("seen", "for the test", registry=registry).inc(3)
    return registry


@pytest.mark.anyio
async def test_metrics_on_loopback_need_no_token(registry: CollectorRegistry) -> None:
    server = MetricsServer("127.0.0.1", 0, "secret", Exposition(registry=registry))
    url = await server.start()
    status, body = await anyio.to_thread.run_sync(get, url)
    assert (status, "seen_total 3.0" in body) == (200, True)
    assert (await anyio.to_thread.run_sync(get, url.replace("/metrics", "/")))[0] == 404
    await server.stop()


@pytest.mark.anyio
async def test_metrics_beyond_loopback_need_the_token(registry: CollectorRegistry) -> None:
    server = MetricsServer("0.0.0.0", 0, "Secret", Exposition(registry=registry))
    url = (await server.start()).replace("0.0.0.0", "127.0.0.1")
    statuses = [(await anyio.to_thread.run_sync(get, url, token))[0] for token in ("", "wrong", "secret", "Secret")]
    assert statuses == [401, 401, 401, 200]
    await server.stop()


def test_metrics_beyond_loopback_without_a_token_are_refused() -> None:
    with pytest.raises(ConfigError, match="BATON_SERVICE_TOKEN"):
        MetricsServer("0.0.0.0", 0)


@pytest.mark.anyio
async def test_a_taken_port_is_a_config_error(registry: CollectorRegistry) -> None:
    server = MetricsServer("127.0.0.1", 0, "", Exposition(registry=registry))
    port = int((await server.start()).split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=str(port)):
        await MetricsServer("127.0.0.1", port, "", Exposition(registry=registry)).start()
    await server.stop()
