"""Where spans are sent, as far as that can be tested without a collector."""

import pytest

from baton.errors import ConfigError
from baton.telemetry import otel


@pytest.mark.parametrize("endpoint", ["collector", "collector:4318", "grpc://collector:4317"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint):
    with pytest.raises(ConfigError, match=f"--otlp-endpoint: '{endpoint}' is not a URL: write it as http://collector"):
        otel.exporter(endpoint, {"role": "router"})
