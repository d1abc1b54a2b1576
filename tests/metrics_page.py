"""What a service's metrics page says, for tests of real processes."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families


def samples(url: str, name: str, by: str) -> dict[str, float]:
    """The samples of that name, by the value of one of their labels."""
    with urllib.request.urlopen(url, timeout=5) as response:
        families = text_string_to_metric_families(response.read().decode())
        found = [sample for family in families for sample in family.samples if sample.name == name]
    assert found, f"no metric {name}"
    return {sample.labels.get(by, ""): float(sample.value) for sample in found}
