from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from baton.kv.prefix_hash import root_hash
from baton.request import Generation, SamplingParams
from engine.blocks import BlockManager
from engine.request import Request
from tests.unit.engine.block_use import BLOCK_SIZE, admit, compute


class Cache(RuleBasedStateMachine):
    """Random requests over a tiny alphabet, so that prefixes coincide, in a pool that is too small for them."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, BLOCK_SIZE)
        self.live: list[Request] = []
        self.announced: set[bytes] = set()
        self.parents: dict[bytes, bytes | None] = {}  # of every block hash ever computed

    @rule(
        target=requests, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20), salt=st.sampled_from([b"", b"x"])
    )
    def add(self, tokens, salt):
        generation = Generation(
            request_id="r", key=0, token_ids=tokens, num_prompt_tokens=len(tokens), sampling=SamplingParams(),
            cache_salt=salt, router_id="router",
        )  # fmt: skip
        request = Request(generation, root_hash("m", salt), BLOCK_SIZE, 0.0)
        if not admit(self.blocks, request):
            return multiple()
        self.live.append(request)
        return request

    @rule(request=requests, part=st.floats(0, 1))
    def compute(self, request, part):
        num_new = round(request.num_uncomputed_tokens * part)
        compute(self.blocks, request, request.num_computed_tokens + num_new)
        hashes = request.hashes(request.num_computed_tokens // BLOCK_SIZE)
        self.parents |= dict(zip(hashes, [None, *hashes], strict=False))

    @rule(request=requests, token=st.integers(0, 1))
    def decode(self, request, token):
        if self.blocks.grow(request, request.num_tokens + 1):
            request.token_ids.append(token)

    @rule(request=consumes(requests))
    def release(self, request):
        self.live.remove(request)
        self.blocks.release(request)
        self.blocks.release(request)

    @invariant()
    def no_block_is_lost_or_shared_by_accident(self):
        self.blocks.check(self.live)

    @invariant()
    def events_add_up_and_chains_are_whole(self):
        stored, evicted = self.blocks.take_events()
        assert self.announced >= set(evicted)
        self.announced -= set(evicted)
        assert not set(stored) & self.announced
        self.announced |= set(stored)
        assert self.announced == set(self.blocks.published())
        parents = {self.parents[block_hash] for block_hash in self.announced} - {None}
        assert parents <= self.announced, "a published block without its parent"

    def teardown(self):
        for request in self.live:
            self.blocks.release(request)
        self.blocks.check([])
        assert self.blocks.num_free_blocks == 12


TestCache = Cache.TestCase
TestCache.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
