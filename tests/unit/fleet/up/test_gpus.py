from pathlib import Path

import pytest

from baton.model_source import Model
from baton.process.settings import FleetConfig
from fleet.up import gpus
from fleet.up.gpus import Gpu
from fleet.up.services import Services

LISTING = "0, 81000\n1, 40000\n2, [N/A]\n"


def services_of(model: Path, found: tuple[Gpu, ...], **config: object) -> Services:
    return Services(
        config=FleetConfig(**config),  # type: ignore[arg-type]
        model=Model(model, ("m",)),
        redis_url="",
        service_token="",
        gpus=found,
    )


def flag(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1] if name in argv else ""


def test_the_drivers_listing_is_read():
    assert gpus.visible(LISTING, None) == (Gpu("0", 81000 * 2**20), Gpu("1", 40000 * 2**20))
    assert gpus.visible("", None) == ()


@pytest.mark.parametrize(("allowed", "indices"), [("1", ["1"]), ("1,0", ["1", "0"]), ("", []), ("GPU-1234", [])])
def test_cuda_visible_devices_is_respected(allowed: str, indices: list[str]):
    assert [gpu.index for gpu in gpus.visible(LISTING, allowed)] == indices


def test_nodes_are_assigned_gpus_round_robin(tmp_path: Path):
    services = services_of(tmp_path, gpus.visible(LISTING, None), prefill=1, decode=2)
    nodes = [services.node("prefill", 0, 1), services.node("decode", 0, 2), services.node("decode", 1, 2)]
    assert [node.env["CUDA_VISIBLE_DEVICES"] for node in nodes] == ["0", "1", "0"]
    assert all(node.cores == frozenset() for node in nodes)


def test_nodes_on_one_gpu_share_its_memory(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    services = services_of(tmp_path, (Gpu("0", 100 * 2**30),))
    sizes = [flag(services.node(role, 0, 1).argv, "--kv-memory") for role in ("prefill", "decode")]
    assert sizes[0] == sizes[1]
    both = 2 * (int(sizes[0].removesuffix("MiB")) * 2**20 + 2**20)
    assert 70 * 2**30 < both < 85 * 2**30


def test_a_node_alone_on_a_gpu_or_with_a_given_size_is_not_limited(tmp_path: Path):
    gpu = (Gpu("0", 100 * 2**30),)
    assert flag(services_of(tmp_path, gpu, colocated=True).node("decode", 0, 1).argv, "--kv-memory") == ""
    assert flag(services_of(tmp_path, gpu, kv_memory="1GiB").node("decode", 0, 1).argv, "--kv-memory") == "1GiB"


def test_a_fleet_on_the_cpu_leaves_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    node = services_of(tmp_path, (Gpu("0", 2**30),), device="cpu").node("decode", 0, 1)
    assert "CUDA_VISIBLE_DEVICES" not in node.env
