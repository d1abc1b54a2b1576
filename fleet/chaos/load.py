"""Clients that ask one question after another while a fault is injected."""

import asyncio
import itertools
import random

from fleet.chaos.client import Answer, ask
from fleet.chaos.questions import Question, question

NUM_TOPIC_QUESTIONS = 48  # then the same ones again, from the caches
ANSWER_TIMEOUT_S = 60.0
_THINK_S = 0.15
_HANG_UP_AFTER = (1, 2, 7, 30)  # events


class Load:
    """A context manager that runs the clients; on exit, it waits for the answers that have begun."""

    def __init__(self, endpoint: str, model: str, topic: str, num_clients: int, share_hanging_up: float) -> None:
        self.answers: list[Answer] = []
        self._endpoint, self._model, self._topic = endpoint, model, topic
        self._num_clients, self._share_hanging_up = num_clients, share_hanging_up
        self._indices = itertools.count()
        self._random = random.Random(topic)  # noqa: S311
        self._stopping = False
        self._answered = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._clients = [asyncio.create_task(self._keep_asking()) for _ in range(self._num_clients)]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._clients)

    async def more(self, num_answers: int) -> None:
        """Return when this many further questions have been answered, or have failed."""
        enough = len(self.answers) + num_answers
        while len(self.answers) < enough:
            self._answered.clear()
            await self._answered.wait()

    async def _keep_asking(self) -> None:
        while not self._stopping:
            asked = question(self._model, self._topic, next(self._indices) % NUM_TOPIC_QUESTIONS)
            hangs_up = self._random.random() < self._share_hanging_up
            max_events = self._random.choice(_HANG_UP_AFTER) if hangs_up else 0
            self.answers.append(await ask(self._endpoint, asked, ANSWER_TIMEOUT_S, max_events))
            self._answered.set()
            await asyncio.sleep(_THINK_S)


async def ask_all(endpoint: str, questions: set[Question], num_clients: int) -> dict[Question, Answer]:
    """Ask each question once, `num_clients` at a time."""
    slots = asyncio.Semaphore(num_clients)

    async def one(asked: Question) -> Answer:
        async with slots:
            return await ask(endpoint, asked, ANSWER_TIMEOUT_S)

    answers = await asyncio.gather(*(one(asked) for asked in sorted(questions, key=lambda asked: asked.name)))
    return {answer.question: answer for answer in answers}
