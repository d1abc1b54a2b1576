"""An attempt on two nodes, whose messages a test chooses."""

import asyncio
from types import SimpleNamespace
from typing import Any

from baton.errors import BatonError, Overloaded
from baton.request import FinishReason, Generation, SamplingParams
from baton.telemetry.timeline import Timeline
from baton.v1 import node_pb2, types_pb2
from router.nodes.state import NodeState
from router.nodes.step_batch import tell_legs
from router.serving.attempt import Attempt

IDS = {"key": 1, "attempt": 2}
LENGTH, ERROR = FinishReason.LENGTH.value, FinishReason.ERROR.value


class Link:
    """A link that records what is sent to the node."""

    def __init__(self, node_id: str) -> None:
        self.record = SimpleNamespace(node_id=node_id)
        self.state = NodeState(queue_ms=1500.0)
        self.told: list[str] = []
        self.leg: Any = None
        self.prefill: Any = None  # that ships to it
        self.is_full = False

    def start(self, leg: Any, generation: Any, prefill: Any = None) -> None:
        if self.is_full:
            raise Overloaded("the node does not read")
        self.told.append("start")
        self.leg, self.prefill = leg, prefill

    def grant(self, granted: Any) -> None:
        self.told.append("grant")

    def cancel(self, leg: Any) -> None:
        self.told.append("cancel")

    def detach(self, leg: Any) -> None:
        self.leg = None

    def avoid(self) -> None:
        pass


class Owner:
    """A sink that records the tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.num_cached_tokens = 0
        self.timeline = Timeline("r")

    def emit(self, tokens: list[int], logprobs: Any) -> None:
        self.tokens += tokens

    def note(self, num_cached_tokens: int, **timings: float) -> None:
        self.num_cached_tokens += num_cached_tokens


class Case:
    """A running attempt that continues after one output token."""

    def __init__(self, *, prefill: bool = True, decode: bool = True, **sampling: Any) -> None:
        self.prefill, self.decode = Link("p"), Link("d")
        self.owner, self.num_computed = Owner(), 0
        generation = Generation(
            request_id="r", **IDS, token_ids=[5, 6, 7], num_prompt_tokens=2,
            sampling=SamplingParams(max_tokens=9, **sampling), router_id="router",
        )  # fmt: skip
        links: Any = self.prefill if prefill else None, self.decode if decode else None
        self.attempt = Attempt(generation, *links, self.owner, self._computed, 1.0)
        self.outcome = asyncio.create_task(self.attempt.run())

    def _computed(self) -> None:
        self.num_computed += 1

    def hear(self, link: Any, **words: Any) -> None:
        tell_legs(node_pb2.StepBatch(**words), {1: self.attempt}, link)

    def first(self, token_id: int = 10, index: int = 1, **fields: Any) -> None:
        word = types_pb2.FirstToken(**IDS, token_id=token_id, index=index, num_cached_tokens=1, **fields)
        self.hear(self.prefill, first_tokens=[word])

    def tokens(self, first: int, *token_ids: int) -> None:
        columns = {"keys": [1], "attempts": [2]}
        for index, token_id in enumerate(token_ids, first):
            self.hear(self.decode, **columns, indices=[index], token_ids=[token_id])

    def finished(self, num_output_tokens: int, reason: int = LENGTH, code: str = "") -> None:
        fields: dict[str, Any] = {"num_output_tokens": num_output_tokens, "reason": reason, "error_code": code}
        word = types_pb2.Finished(**IDS, **fields)
        self.hear(self.decode, finished=[word])

    def transferred(self) -> None:
        self.hear(self.prefill, transferred=[node_pb2.Transferred(**IDS)])

    async def end(self) -> FinishReason | type[BatonError]:
        async with asyncio.timeout(1):
            try:
                return await self.outcome
            except BatonError as error:
                return type(error)
            finally:
                assert self.prefill.leg is self.decode.leg is None
