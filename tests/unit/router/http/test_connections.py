"""Limits on open connections: of an address, and of the process."""

import pytest

from router.http import connections
from router.http.connections import Connections


@pytest.mark.parametrize("max_per_address", [0, 100])
def test_an_address_has_half_of_all_connections_at_most(monkeypatch, max_per_address):
    monkeypatch.setattr(connections, "max_connections", lambda: 4)
    opened = Connections(max_per_address)
    assert [opened.enter(address) for address in "aaabbc"] == [True, True, False, True, True, False]
    opened.leave("a")
    assert [opened.enter(address) for address in "ca"] == [True, False]  # four in all


def test_an_address_without_connections_is_forgotten():
    opened = Connections(1)
    assert [opened.enter("a"), opened.enter("a")] == [True, False]
    opened.leave("a")
    assert not opened._open
    assert opened.enter("a")
