"""Clients: what they ask for, what an undisturbed fleet would answer, and what they get."""

import asyncio
import random
from dataclasses import dataclass

from baton.errors import BatonError, DeadlineExceeded, NoCapacity, Overloaded
from baton.request import FinishReason, SamplingParams
from router.job import Job, Usage
from tests.simulation.fleet import Fleet
from tests.simulation.loop import Process
from tests.simulation.model import VOCAB_SIZE, reference

HONEST_ERRORS = (NoCapacity, Overloaded, DeadlineExceeded)
LATE_S = 1.0


@dataclass
class Ask:
    """One request: when, of which router, and what."""

    at_s: float
    router: str
    token_ids: list[int]
    sampling: SamplingParams
    timeout_s: float
    cancel_after_s: float | None
    expected: list[int]


def make_asks(rng: random.Random, num: int, span_s: float, routers: list[str], timeout_s: tuple[float, float],
              cancelled: float) -> list[Ask]:  # fmt: skip
    """Conversations that share beginnings; greedy and sampled, with and without log-probabilities."""
    beginnings = [[rng.randrange(8, VOCAB_SIZE) for _ in range(rng.randint(4, 24))] for _ in range(4)]
    asks = []
    for _ in range(num):
        tail = [rng.randrange(8, VOCAB_SIZE) for _ in range(rng.randint(1, 20))]
        sampling = SamplingParams(
            temperature=rng.choice((0.0, 1.0)),
            seed=rng.getrandbits(32),
            max_tokens=rng.choice((1, 2, 6, 12, 24)),
            num_logprobs=rng.choice((-1, -1, 0, 2)),
        )
        asks.append(
            Ask(
                rng.random() * span_s, rng.choice(routers), rng.choice(beginnings) + tail, sampling,
                rng.uniform(*timeout_s), rng.random() * 2 if rng.random() < cancelled else None, [],
            )
        )  # fmt: skip
    for ask, output in zip(asks, reference(asks), strict=True):
        ask.expected = output
    return asks


class Client:
    """The sink of one request. Lives in its router's process, and dies with it."""

    def __init__(self, number: int, ask: Ask, fleet: Fleet) -> None:
        self.number, self.ask = number, ask
        self.process: Process = fleet.processes[ask.router]
        self.got: list[int] = []
        self.error: BatonError | None = None
        self.is_over = False
        self.longest_stall_s = 0.0
        self._fleet = fleet
        self._loop = asyncio.get_running_loop()
        self._began_s = self._heard_s = self._loop.time()
        self._handle = None

    @property
    def is_lost(self) -> bool:
        """Its router has died."""
        return not self.process.alive

    @property
    def is_late(self) -> bool:
        """Its deadline has passed, and nobody said so."""
        return self._loop.time() > self._began_s + self.ask.timeout_s + LATE_S

    def begin(self) -> None:
        """In the router's process."""
        self._began_s = self._heard_s = self._loop.time()
        ask = self.ask
        job = Job(
            request_id=f"r{self.number}", token_ids=ask.token_ids, sampling=ask.sampling,
            deadline_s=self._loop.time() + ask.timeout_s,
        )  # fmt: skip
        try:
            self._handle = self.process.parts["dispatcher"].submit(job, self)
        except BatonError as error:
            self.on_error(error)
            return
        if ask.cancel_after_s is not None:
            self._loop.call_later(ask.cancel_after_s, self._cancel)

    def on_prompt(self, result: object) -> None:
        self._complain("hears of prompt work that it never asked for")

    def on_tokens(self, tokens: list[int], logprobs: list[object] | None) -> None:
        self.longest_stall_s = max(self.longest_stall_s, self._loop.time() - self._heard_s)
        self._heard_s = self._loop.time()
        self._fleet.network.trace("tokens", self.number, tokens)
        if self.is_over:
            self._complain("gets tokens after its end")
        place = len(self.got)
        self.got += tokens
        if self.ask.expected[place : len(self.got)] != tokens:
            self._complain(f"gets {tokens} at {place}, undisturbed {self.ask.expected[place:]}")
        if (logprobs is not None) != (self.ask.sampling.num_logprobs >= 0) or len(logprobs or tokens) != len(tokens):
            self._complain("gets other log-probabilities than it asked for")

    def on_finish(self, reason: FinishReason, usage: Usage) -> None:
        self._fleet.network.trace("finish", self.number, reason)
        self._end()
        if self.got != self.ask.expected or usage.num_output_tokens != len(self.got):
            self._complain(f"finished with {len(self.got)} tokens of {len(self.ask.expected)}")

    def on_error(self, error: BatonError) -> None:
        self._fleet.network.trace("error", self.number, error.message)
        self._end()
        self.error = error
        if not isinstance(error, HONEST_ERRORS):
            self._complain(f"failed: {error!r}")

    def _end(self) -> None:
        if self.is_over:
            self._complain("ends twice")
        self.is_over = True

    def _cancel(self) -> None:
        if not self.is_over:
            self._fleet.network.trace("cancel", self.number)
            self._handle.cancel()
            self.is_over = True

    def _complain(self, what: str) -> None:
        self._fleet.problems.append(f"request {self.number} {what}")
