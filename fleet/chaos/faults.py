"""The faults of `baton chaos`: how each is injected under load, and how recovery is measured."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from signal import SIGSTOP

from fleet.chaos import acts
from fleet.chaos.acts import Act, signals
from fleet.chaos.client import Answer
from fleet.chaos.fleet import PrivateFleet
from fleet.chaos.load import Load
from fleet.chaos.memory import Memory

BLOCKS_BACK_S = 10.0
WHOLE_AGAIN_S = 120.0
_POLL_S = 0.1
_EARLY_S = 0.06


@dataclass(frozen=True)
class Fault:
    """An act against the fleet, clients that hang up, or both."""

    name: str
    act: Act
    early: bool = False  # while prompts are computed and transferred, not while answers stream
    share_hanging_up: float = 0.0
    in_short: bool = False
    max_failovers: int | None = None  # more mean that living nodes were given up
    may_wait: bool = False  # streams may stall until a node is back


FAULTS = (
    Fault("none", acts.nothing),
    Fault("prefill killed", signals(("prefill",)), early=True, in_short=True),
    Fault("prefill killed late", signals(("prefill",))),
    Fault("decode killed early", signals(("decode",)), early=True),
    Fault("decode killed", signals(("decode",)), in_short=True),
    Fault("both killed", signals(("prefill", "decode")), early=True),
    Fault("prefill frozen", signals(("prefill",), SIGSTOP, 10), early=True),
    Fault("decode frozen early", signals(("decode",), SIGSTOP, 10), early=True),
    Fault("decode frozen", signals(("decode",), SIGSTOP, 10)),
    Fault("decode frozen for 4 s", signals(("decode",), SIGSTOP, 4), in_short=True),
    Fault("both frozen, clients hang up", signals(("prefill", "decode"), SIGSTOP, 4), True, share_hanging_up=0.5),
    Fault("all prefill killed", acts.whole_pool_killed("prefill"), early=True, may_wait=True),
    Fault("all decode killed", acts.whole_pool_killed("decode"), may_wait=True),
    Fault("router killed", acts.router_killed, in_short=True),
    Fault("rolling restart", acts.rolling_restart),
    Fault("redis killed", signals(("redis",)), in_short=True),
    Fault("redis frozen", signals(("redis",), SIGSTOP, 5)),
    Fault("redis emptied", acts.redis_emptied),
    Fault("redis refuses the password", acts.redis_refuses),
    Fault("decode and redis killed", signals(("decode", "redis"))),
    Fault("clients hang up", acts.nothing, share_hanging_up=0.5),
)


@dataclass
class Outcome:
    """What was observed during a fault."""

    fault: Fault
    answers: list[Answer] = field(default_factory=list)
    held: dict[str, tuple[int, int]] = field(default_factory=dict)  # service -> blocks, requests; empty at the end
    num_lost_blocks: int = 0  # blocks that are in no state
    num_reported_leaks: int = 0  # as reported by nodes
    num_failovers: int = 0
    blocks_back_s: float = 0.0  # since the last answer
    recovery_s: float = 0.0  # from the fault, or its end, until every service was ready

    @property
    def num_leaked_blocks(self) -> int:
        """Number of blocks that were not returned."""
        return self.num_lost_blocks + sum(num_blocks for num_blocks, _ in self.held.values())

    @property
    def longest_stall_s(self) -> float:
        """The longest stall of any stream that had begun."""
        return max((answer.longest_stall_s for answer in self._counted), default=0.0)

    @property
    def most_stalled(self) -> Answer | None:
        """The stream with the longest stall."""
        return max(self._counted, key=lambda answer: answer.longest_stall_s, default=None)

    @property
    def longest_wait_s(self) -> float:
        """The longest wait of any request for its first token."""
        return max((answer.longest_wait_s for answer in self._counted), default=0.0)

    @property
    def _counted(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.on_victim]


async def inject(
    fleet: PrivateFleet, fault: Fault, topic: str, num_clients: int, turn: int, memory: Memory | None = None
) -> Outcome:
    """Inject the fault while `num_clients` streams run; return when the fleet has recovered, or time is up."""
    outcome, num_failovers = Outcome(fault), fleet.num_failovers()
    async with Load(fleet.endpoint, fleet.model, topic, num_clients, fault.share_hanging_up) as load:
        await (asyncio.sleep(_EARLY_S * (turn + 1)) if fault.early else load.more(num_clients // 2))
        done = await fault.act(fleet, turn)
        recovery = asyncio.create_task(_until_whole(fleet, done.ended))
        await load.more(num_clients)
    outcome.answers = load.answers
    for answer in outcome.answers:
        answer.on_victim = answer.local_port in done.victims
    await _until_idle(fleet, outcome)
    outcome.recovery_s = await recovery
    outcome.num_failovers = max(fleet.num_failovers() - num_failovers, 0)
    outcome.num_reported_leaks = fleet.num_leaks()
    if memory is not None:
        memory.sample(fleet.services())
    return outcome


async def _until_idle(fleet: PrivateFleet, outcome: Outcome) -> None:
    began = time.monotonic()
    while True:
        with suppress(OSError):  # a service has died, and the fleet does not know it yet
            held = await asyncio.to_thread(fleet.held)
            outcome.held = {name: counts for name, counts in held.items() if any(counts)}
            outcome.blocks_back_s = time.monotonic() - began
            if not outcome.held:
                return
        if time.monotonic() - began > BLOCKS_BACK_S:
            return
        await asyncio.sleep(_POLL_S)


async def _until_whole(fleet: PrivateFleet, without: frozenset[int]) -> float:
    """Wait until every service is ready; return the seconds this took."""
    began = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(WHOLE_AGAIN_S):
            while not fleet.is_whole(without):  # noqa: ASYNC110 - another process reports it in a file
                await asyncio.sleep(_POLL_S)
    return time.monotonic() - began
