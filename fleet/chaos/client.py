"""A client of `baton chaos`: sends one question, and records the answer and its longest silences."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

from fleet.chaos.questions import Question

_OK = 200


@dataclass
class Choice:
    """One choice of an answer, assembled from its events."""

    text: str = ""
    finish_reason: str = ""
    logprobs: list[Any] = field(default_factory=list)


@dataclass
class Answer:
    """The outcome of a question."""

    question: Question
    choices: dict[int, Choice] = field(default_factory=dict)
    num_output_tokens: int = 0
    request_id: str = ""  # the server's, for `baton trace`
    num_events: int = 0
    local_port: int = 0  # of the connection: shows which router served it
    on_victim: bool = False  # its router was killed, so the answer may break off
    longest_wait_s: float = 0.0  # of any choice, for its first token; for an embedding, the whole time
    longest_stall_s: float = 0.0  # of any choice that had begun
    stalled_at_s: float = 0.0  # when that stall began, since the question was sent
    hung_up: bool = False  # the client did, on purpose
    complete: bool = False
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the answer is incomplete, although its client did not hang up."""
        return not self.on_victim and (bool(self.error) or not (self.complete or self.hung_up))

    def same_as(self, reference: "Answer") -> bool:
        """Whether it equals the reference, as far as its client waited for it."""
        if not (self.hung_up or self.on_victim):
            return (self.choices, self.num_output_tokens) == (reference.choices, reference.num_output_tokens)
        pairs = ((choice.text, reference.choices[index].text) for index, choice in self.choices.items())
        return all(whole.startswith(part) for part, whole in pairs)


async def ask(endpoint: str, question: Question, timeout_s: float, max_events: int = 0) -> Answer:
    """Ask a question; never raises for server errors. With `max_events`, hang up after that many events."""
    reader = _Reader(question, max_events)
    try:
        async with asyncio.timeout(timeout_s):
            await _talk_as_a_balancer(endpoint, question, reader)
    except TimeoutError:
        reader.answer.error = f"not complete after {timeout_s:.0f} s"
    except (OSError, httptools.HttpParserError) as error:
        reader.answer.error = str(error) or type(error).__name__
    reader.settle()
    return reader.answer


async def _talk_as_a_balancer(endpoint: str, question: Question, reader: "_Reader") -> None:
    """Ask again, of another router, if the one that was killed had sent nothing yet, as a load balancer would."""
    try:
        await _talk(endpoint, question, reader)
    except ConnectionError:
        if reader.has_begun:
            raise
        await _talk(endpoint, question, reader)


async def _talk(endpoint: str, question: Question, reader: "_Reader") -> None:
    parts = urlsplit(endpoint)
    data = json.dumps(question.body).encode()
    head = (
        f"POST {question.path} HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    stream, writer = await asyncio.open_connection(parts.hostname, parts.port)
    reader.answer.local_port = writer.get_extra_info("sockname")[1]
    try:
        writer.write(head.encode() + data)
        while not reader.is_over and (received := await stream.read(65536)):
            reader.parser.feed_data(received)
    finally:
        writer.transport.abort()


class _Reader:
    """Callbacks for httptools that fill in the answer."""

    def __init__(self, question: Question, max_events: int) -> None:
        self.answer = Answer(question)
        self.parser = httptools.HttpResponseParser(self)
        self.is_over = False
        self._answer_is_streamed = bool(question.body.get("stream"))
        self._max_events = max_events
        self._began = time.monotonic()
        self._heard = dict.fromkeys(range(question.body.get("n", 1)), self._began)  # choice -> time of its last token
        self._begun: set[int] = set()  # choices that have produced a token
        self._rest = b""

    @property
    def has_begun(self) -> bool:
        """Whether any part of an answer has arrived."""
        return bool(self.parser.get_status_code())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Handle a header of the answer."""
        if name.lower() == b"x-request-id":
            self.answer.request_id = value.decode()

    def on_body(self, body: bytes) -> None:
        """Handle a piece of the body: events, or an error."""
        *events, self._rest = (self._rest + body).split(b"\n\n")
        for event in events:
            self._take(event.removeprefix(b"data:").strip())

    def on_message_complete(self) -> None:
        """Handle the end of the response."""
        self.is_over = True
        if not self._answer_is_streamed and self.parser.get_status_code() == _OK:
            self.answer.choices[0] = Choice(json.dumps(json.loads(self._rest)["data"]))
            self.answer.complete = True
            self._hear(0)
            self._heard.clear()

    def settle(self) -> None:
        """Finish the record: a choice that did not end counts as silent until now."""
        for index in list(self._heard):
            self._hear(index)
        if self.answer.failed and not self.answer.error:
            status = self.parser.get_status_code()
            refusal = f"{status}: {self._rest.decode(errors='replace')[:200]}"
            self.answer.error = "the stream broke off" if status in (0, 200) else refusal

    def _take(self, event: bytes) -> None:
        if event == b"[DONE]":
            self.answer.complete = True
            return
        message = json.loads(event)
        if "error" in message:
            self.answer.error = str(message["error"].get("message"))
        for row in message.get("choices", ()):
            self._take_choice(row)
        if usage := message.get("usage"):
            self.answer.num_output_tokens = usage["completion_tokens"]
        self.answer.num_events += 1
        if self.answer.num_events == self._max_events:
            self.answer.hung_up = self.is_over = True
            self._heard.clear()

    def _take_choice(self, row: dict[str, Any]) -> None:
        index = row["index"]
        choice = self.answer.choices.setdefault(index, Choice())
        choice.text += row["text"] if "text" in row else row["delta"].get("content") or ""
        choice.finish_reason = row["finish_reason"] or choice.finish_reason
        if row.get("logprobs") and "text" in row:
            choice.logprobs += zip(row["logprobs"]["tokens"], row["logprobs"]["token_logprobs"], strict=True)
        self._hear(index)
        if choice.finish_reason:
            self._heard.pop(index, None)

    def _hear(self, index: int) -> None:
        if index not in self._heard:
            return
        now = time.monotonic()
        before, self._heard[index] = self._heard[index], now
        silence_s = now - before
        if index in self._begun:
            if silence_s > self.answer.longest_stall_s:
                self.answer.longest_stall_s, self.answer.stalled_at_s = silence_s, before - self._began
        else:
            self._begun.add(index)
            self.answer.longest_wait_s = max(self.answer.longest_wait_s, silence_s)
