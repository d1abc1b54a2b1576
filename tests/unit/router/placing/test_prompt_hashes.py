from types import SimpleNamespace

import pytest

from baton.kv.prefix_hash import root_hash
from baton.request import Generation, SamplingParams
from baton.token_ids import packed
from engine.request import Request
from router.nodes.fleet_view import FleetFacts
from router.placing.prompt_hashes import PromptHashes


@pytest.mark.parametrize(("num_tokens", "stretched"), [(8, False), (9, True), (20, True), (2400, True)])
def test_routers_and_nodes_hash_alike(num_tokens, stretched):
    token_ids = list(range(num_tokens))
    running = SimpleNamespace(token_ids=packed(token_ids), job=SimpleNamespace(cache_salt=b"salt"))
    found = list(PromptHashes(running).of(FleetFacts("cafe", 4, 4096, stretches_after=8)))
    generation = Generation(
        request_id="r", key=1, token_ids=token_ids, num_prompt_tokens=5, sampling=SamplingParams(), router_id=""
    )
    request = Request(generation, root_hash("cafe", b"salt"), 4, 0.0, stretches_after=8)
    assert request.is_stretched == stretched
    assert found == request.hashes(num_tokens // 4)
    plain = list(PromptHashes(running).of(FleetFacts("cafe", 4, 4096)))
    assert (found == plain) != stretched
