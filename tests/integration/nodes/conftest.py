"""Real node processes, a real Redis, real gRPC; the test is the router."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from engine import random_checkpoint
from tests.conftest import RedisServer
from tests.integration.nodes.routing import TOKEN, NodeProcess, Router, idle


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="package")
def fleet_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis that lives as long as the nodes, and that no other test looks into."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture(scope="package")
def start(model: Path, fleet_redis: str) -> Iterator[Callable[..., NodeProcess]]:
    """Starts a node; whoever wants to use it waits until it is ready."""
    nodes: list[NodeProcess] = []

    def start_node(role: str, *flags: str, **env: str) -> NodeProcess:
        nodes.append(NodeProcess(role, model, fleet_redis, "--kv-memory", "1MiB", *flags, **env))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.end()


@pytest.fixture(scope="package", params=["tcp", "ucx"])
def pair(start: Callable[..., NodeProcess], request: pytest.FixtureRequest) -> tuple[NodeProcess, NodeProcess]:
    env = {"BATON_SERVICE_TOKEN": TOKEN} if request.param == "ucx" else {}
    prefill, decode = (start(role, "--transport", request.param, **env) for role in ("prefill", "decode"))
    return prefill.wait_ready(), decode.wait_ready()


@pytest.fixture(scope="package")
def expected(model: Path) -> Callable[[list[int], int], list[int]]:
    """Greedy tokens of the reference implementation."""
    import torch
    import transformers

    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def generate(prompt: list[int], num_tokens: int) -> list[int]:
        length = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
        output = reference.generate(
            torch.tensor([prompt]), do_sample=False, eos_token_id=None, pad_token_id=0, **length
        )
        return [int(token) for token in output[0, len(prompt) :]]

    return generate


@pytest.fixture
async def router(pair: tuple[NodeProcess, NodeProcess]) -> AsyncIterator[Router]:
    router = await Router(*pair).attach()
    yield router
    await router.close()
    await idle(*pair)
