from types import SimpleNamespace

from bench._turns import in_turns


def test_every_server_is_measured_in_every_round():
    servers = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    assert [server.name for server in in_turns(servers, 2)] == ["a", "b", "a", "b"]
