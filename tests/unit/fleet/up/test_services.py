import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest

from baton.model_source import Model
from baton.process.settings import FleetConfig, NodeConfig, RouterConfig
from fleet.up.cores import share
from fleet.up.services import Services
from fleet.up.welcome import welcome


def services_of(cores: list[int] | None = None, **config: object) -> Services:
    return Services(
        config=FleetConfig(device="cpu", port=1234, **config),  # type: ignore[arg-type]
        model=Model(Path("/models/m"), ("m", "alias")),
        redis_url="unix:///run/redis.sock?password=hunter2",
        service_token="t0ken",
        cores=cores or [0, 1],
    )


def parsed(argv: tuple[str, ...], config: type) -> object:
    import argparse

    from baton.process.config import add_flags, from_args

    parser = argparse.ArgumentParser()
    add_flags(parser, config)
    return from_args(config, parser.parse_args(argv[4:]), {})


def test_a_node_gets_every_engine_flag_of_the_fleet():
    command = services_of(max_num_seqs=7, block_size=32, dtype="float32", kv_memory="64MiB", transport="tcp").node(
        "decode", 0, 1
    )
    node = parsed(command.argv, NodeConfig)
    assert isinstance(node, NodeConfig)
    assert (node.node_id, node.model, node.served_model_name) == ("decode-0", "/models/m", ("m", "alias"))
    assert (node.max_num_seqs, node.block_size, node.dtype, node.kv_memory) == (7, 32, "float32", "64MiB")
    assert node.transport == "tcp"


def test_every_flag_of_the_fleet_that_a_node_has_is_passed_on():
    shared = {f.name for f in dataclasses.fields(FleetConfig)} & {f.name for f in dataclasses.fields(NodeConfig)}
    elsewhere = {"model", "served_model_name", "num_threads", "host", "port", "redis_url", "device"}
    changed = {"dtype": "float16", "kv_memory": "1MiB", "transport": "ucx", "log_level": "error"}
    changed |= {"quantization": "int8", "deterministic": False, "cuda_graphs": False}
    changed |= {"log_format": "json", "otlp_endpoint": "http://collector:4318"}
    for name in shared - elsewhere:
        value = changed.get(name, 24)
        node = parsed(services_of(**{name: value}).node("prefill", 0, 1).argv, NodeConfig)
        assert getattr(node, name) == value


def test_a_router_gets_the_endpoint_and_the_keys(tmp_path: Path):
    command = services_of(host="0.0.0.0", api_key_file="keys", max_model_len=99, tool_parser="hermes").router(2)
    router = parsed(command.argv, RouterConfig)
    assert isinstance(router, RouterConfig)
    assert (router.tool_parser, router.reasoning_parser) == ("hermes", "auto")
    assert (router.host, router.port, router.max_model_len) == ("0.0.0.0", 1234, 99)
    assert router.api_key_file == os.path.abspath("keys")
    assert command.id == "router-2"


def test_secrets_are_never_in_argv(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATON_API_KEY", "sk-secret")
    services = services_of()
    for command in (services.node("prefill", 0, 1), services.router(0)):
        assert not {"hunter2", "t0ken", "sk-secret"} & {part for text in command.argv for part in text.split("=")}
        assert command.env["BATON_SERVICE_TOKEN"] == "t0ken"
        assert "hunter2" in command.env["BATON_REDIS_URL"]
        assert "hunter2" not in repr(command)
    assert services.router(0).env["BATON_API_KEY"] == "sk-secret"
    assert "BATON_API_KEY" not in services.node("decode", 0, 1).env


def test_services_inherit_no_variable_except_injected_faults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATON_MAX_NUM_SEQS", "1")
    monkeypatch.setenv("BATON_FAULTS", "prefill.before_send=kill")
    env = services_of().node("prefill", 0, 1).env
    assert "BATON_MAX_NUM_SEQS" not in env
    assert env["BATON_FAULTS"] == "prefill.before_send=kill"
    assert env["BATON_DIE_WITH_PARENT"] == str(os.getpid())


def test_two_cores_are_one_for_each_pool():
    services = services_of([0, 1])
    assert services.node("prefill", 0, 1).cores == {0}
    assert services.node("decode", 0, 1).cores == {1}
    assert services.router(0).cores == frozenset()
    assert parsed(services.node("decode", 0, 1).argv, NodeConfig).num_threads == 1  # type: ignore[attr-defined]


def test_prefill_yields_where_cores_are_few():
    services = services_of([0, 1])
    assert services.node("prefill", 0, 1).niceness > 0
    assert services.node("decode", 0, 1).niceness == services.router(0).niceness == 0
    assert services_of(list(range(64))).node("prefill", 0, 1).niceness == 0
    assert services_of([0, 1], colocated=True).node("decode", 0, 1).niceness == 0


def test_a_colocated_fleet_computes_on_all_cores():
    assert share([0, 1], "decode", 1, colocated=True).cores == {0, 1}
    assert share([0, 1], "decode", 1, colocated=True).num_threads == 2


@pytest.mark.parametrize(("num_nodes", "num_threads"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_nodes_of_a_pool_share_its_cores(num_nodes: int, num_threads: int):
    parts = [share(list(range(8)), "prefill", num_nodes, colocated=False, index=i) for i in range(num_nodes)]
    assert {part.num_threads for part in parts} == {num_threads}
    assert {len(part.cores) for part in parts} == {num_threads}
    used = [core for part in parts for core in part.cores]
    assert set(used) <= {0, 1, 2, 3}
    assert num_nodes > 4 or len(used) == len(set(used))


def test_colocated_nodes_have_a_core_each():
    parts = [share([0, 1], "decode", 2, colocated=True, index=i) for i in range(2)]
    assert [part.cores for part in parts] == [{0}, {1}]
    assert services_of(colocated=True, decode=2).node("decode", 1, 2).cores == {1}


def test_one_core_is_shared_and_many_are_not_pinned():
    assert share([5], "prefill", 1, colocated=False).cores == share([5], "decode", 1, colocated=False).cores == {5}
    many = share(list(range(64)), "decode", 2, colocated=False)
    assert many.cores == frozenset()
    assert many.num_threads == 16


def test_an_explicit_number_of_threads_is_not_pinned():
    command = services_of(num_threads=3).node("prefill", 0, 1)
    assert command.cores == frozenset()
    assert parsed(command.argv, NodeConfig).num_threads == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:1234"),
        ("::", "http://[::1]:1234"),
        ("box.example", "http://box.example:1234"),
    ],
)
def test_the_endpoint_can_be_reached_from_here(host: str, endpoint: str):
    assert services_of(host=host).endpoint == endpoint


def test_the_welcome_refers_to_the_key_without_showing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = tmp_path / "my keys"
    keys.write_text("# ours\nsk-secret\n")
    said = welcome(services_of(api_key_file=str(keys)))
    assert "sk-secret" not in said
    header = re.search(r'-H ("Authorization: .*") -d', said)
    assert header is not None
    echoed = subprocess.run(f"echo {header[1]}", shell=True, capture_output=True, text=True, check=True)
    assert echoed.stdout == "Authorization: Bearer sk-secret\n"
    monkeypatch.setenv("BATON_API_KEY", "sk-a,sk-b")
    assert '"Authorization: Bearer ${BATON_API_KEY%%,*}"' in welcome(services_of())
