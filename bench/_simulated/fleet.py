"""A simulated fleet with one router: requests arrive, and are admitted, placed and served by the router's rules.

`place` chooses nodes; the default is the router's own policy (`router.placing.policy`). The router knows of a node what
a real one would: its load twice a second, its own accounting in between, and which blocks are cached.
"""

import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from baton.errors import Overloaded
from baton.step_cost import StepCost
from bench._simulated.clock import VirtualClock
from bench._simulated.decode_node import DecodeNode
from bench._simulated.hardware import Hardware, SimulatedRequest
from bench._simulated.prefill_node import PrefillNode
from bench._simulated.shared_cores import SharedCores
from router.nodes.fleet_costs import FleetCosts
from router.nodes.state import NodeState
from router.placing import policy
from router.placing.admission import AdmissionQueue, Waiting
from router.placing.policy import Ask, NodeChoice
from router.placing.ttft_predictor import TtftPredictor

BEAT_MS = 500.0


class Pools(msgspec.Struct, frozen=True, eq=False):
    """The input of a choice: the state of each node, and how many leading blocks of the prompt it holds."""

    prefills: Sequence[NodeState]
    prefill_cached: Sequence[int]
    decodes: Sequence[NodeState]
    decode_cached: Sequence[int]


Place = Callable[[Ask, Pools], NodeChoice | None]


def place_by_cost(ask: Ask, pools: Pools) -> NodeChoice | None:
    """Choose as the router does."""
    return policy.choose(ask, pools.prefills, pools.prefill_cached, pools.decodes, pools.decode_cached)


class SimulatedFleet:
    """A fleet that runs once; afterwards read the requests, `prefills` and `decodes`."""

    def __init__(
        self,
        num_prefill: int,
        num_decode: int,
        hardware: Hardware,
        *,
        place: Place = place_by_cost,
        max_waiting: int = 1024,
    ) -> None:
        """Create the nodes. With `num_prefill` 0, decode nodes do everything."""
        self.clock = VirtualClock()
        rng = random.Random(0)
        self.prefills = [PrefillNode(self.clock, hardware, rng) for _ in range(num_prefill)]
        self.decodes = [DecodeNode(self.clock, hardware, rng) for _ in range(num_decode)]
        self.prefill_states = [NodeState() for _ in self.prefills]
        self.decode_states = [NodeState() for _ in self.decodes]
        self.costs = FleetCosts()
        self.queue = AdmissionQueue(max_waiting)
        self.num_open = 0
        self._hardware, self._place = hardware, place
        self._predictor = TtftPredictor()
        self._waiting: dict[int, SimulatedRequest] = {}  # by id() of its queue entry
        self._num_turns = 0
        self._cores = SharedCores(hardware, self.prefills, self.decodes)

    def run(self, requests: Iterable[SimulatedRequest], on_arrival: Callable[[], None] = lambda: None) -> None:
        """Run until all requests, given in order of arrival, have ended. `on_arrival` may count them."""
        arriving = iter(requests)

        def arrive(request: SimulatedRequest) -> None:
            on_arrival()
            self._arrive(request)
            expect_next()

        def expect_next() -> None:
            request = next(arriving, None)
            if request is not None:
                self.num_open += 1
                self.clock.at(request.arrival_ms, lambda: arrive(request))

        expect_next()
        self._beat()
        while self.num_open and self.clock.step():
            self._cores.share()

    def _beat(self) -> None:
        """Let all nodes report their loads."""
        loads = [(state, node.load()) for state, node in zip(self.prefill_states, self.prefills, strict=True)]
        loads += [(state, node.load()) for state, node in zip(self.decode_states, self.decodes, strict=True)]
        for state, load in loads:
            self.costs.take_load(load)
            state.take_load(load, self.costs.pooled, self.clock.now_s)
        self._place_waiting()
        self.clock.at(self.clock.now_ms + BEAT_MS, self._beat)

    def _arrive(self, request: SimulatedRequest) -> None:
        choice = self._choose(request)
        computing = self.prefill_states or self.decode_states
        work_ms = choice.prompt_ms if choice else _longest_ms(computing[0].cost, request, self._hardware)
        ahead_ms = self.queue.ahead_ms(request.tenant, 1, work_ms)
        entry = Waiting(
            tenant=request.tenant,
            deadline_s=self.clock.now_s + (request.max_ttft_ms or 1e9) / 1000,
            num_tokens=request.num_prompt_tokens + request.num_output_tokens,
            work_ms=work_ms,
        )
        wait_ms = self._predictor.wait_ms(ahead_ms, len(computing)) + policy.least_queue_ms(computing)
        entry.ttft_s = ((choice.queue_ms if choice and not len(self.queue) else wait_ms) + work_ms) / 1000
        try:
            if request.max_ttft_ms:
                self._predictor.check_ttft(entry.ttft_s, request.max_ttft_ms / 1000)
            self.queue.push(entry)
        except Overloaded:
            request.refused_ms = self.clock.now_ms
            self.num_open -= 1
            return
        self._waiting[id(entry)] = request
        self._place_waiting()

    def _place_waiting(self) -> None:
        while (entry := self.queue.head()) is not None:
            request = self._waiting[id(entry)]
            choice = None
            if policy.least_queue_ms(self.prefill_states or self.decode_states) <= 1000 * policy.MAX_BACKLOG_S:
                choice = self._choose(request)
            if choice is None:
                self._predictor.held_back(self.clock.now_s)
                return
            del self._waiting[id(entry)]
            self.queue.remove(entry, is_served=True)
            self._predictor.placed(entry.work_ms, self.clock.now_s)
            self._send(request, choice, entry.ttft_s if request.arrival_ms < self.clock.now_ms else 0.0)
        self._predictor.emptied()

    def _choose(self, request: SimulatedRequest) -> NodeChoice | None:
        hashes = request.hashes
        ask = Ask(
            num_tokens=request.num_prompt_tokens,
            block_size=self._hardware.block_size,
            num_output_tokens=min(self.costs.output_tokens, 1e9) if request.num_output_tokens > 1 else 0.0,
            transfer=self.costs.transfer,
            turn=self._num_turns,
        )
        pools = Pools(
            self.prefill_states,
            [node.find(hashes) for node in self.prefills],
            self.decode_states,
            [node.cache.find(hashes) for node in self.decodes],
        )
        return self._place(ask, pools)

    def _send(self, request: SimulatedRequest, choice: NodeChoice, predicted_s: float) -> None:
        self._num_turns += 1
        decode = None if choice.decode is None else self.decodes[choice.decode]
        states = self.prefill_states if choice.prefill is not None else self.decode_states
        computing = states[choice.prefill if choice.prefill is not None else choice.decode or 0]
        computing.send_prompt(choice.prompt_ms, self.clock.now_s)
        deciding = None if choice.decode is None else self.decode_states[choice.decode]
        if deciding is not None:
            deciding.send_decode(request.num_prompt_tokens, choice.num_missing_blocks)

        def ended() -> None:
            if deciding is not None:
                deciding.decode_done(request.num_prompt_tokens, choice.num_missing_blocks)
            self.costs.note_output(request.num_output_tokens)
            self.num_open -= 1
            self._place_waiting()

        def computed() -> None:
            computing.prompt_done(choice.prompt_ms)
            self._predictor.came(predicted_s, (self.clock.now_ms - request.arrival_ms) / 1000, self.clock.now_s)
            self._place_waiting()

        if choice.prefill is None:
            request.is_alone = True
            self.decodes[choice.decode or 0].submit(request, computed, ended)
            return
        self._send_pair(request, self.prefills[choice.prefill], decode, computed, ended)

    def _send_pair(
        self,
        request: SimulatedRequest,
        prefill: PrefillNode,
        decode: DecodeNode | None,
        computed: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        num_missing = decode.reserve(request) if decode is not None else 0

        def prompt_done(began_ms: float) -> None:
            computed()
            if decode is None:
                request.end_ms = self.clock.now_ms
                ended()
            else:
                self._transfer(request, num_missing, began_ms, decode, ended)

        prefill.submit(request, prompt_done)

    def _transfer(
        self,
        request: SimulatedRequest,
        num_blocks: int,
        began_ms: float,
        decode: DecodeNode,
        ended: Callable[[], None],
    ) -> None:
        """Transfer blocks while the prompt is computed; each decode node receives one request at a time."""
        now_ms, hardware = self.clock.now_ms, self._hardware
        sent_ms = max(began_ms, decode.receives_until_ms) + num_blocks * hardware.block_ms
        decode.receives_until_ms = sent_ms
        arrived_ms = max(sent_ms, now_ms) + hardware.latency_ms
        self.costs.transfer.note(num_blocks, now_ms - began_ms, arrived_ms - now_ms)
        self.clock.at(arrived_ms, lambda: decode.join(request, ended))


def _longest_ms(cost: StepCost, request: SimulatedRequest, hardware: Hardware) -> float:
    return cost.prefill_ms(request.num_prompt_tokens, 0, hardware.chunk_tokens)
