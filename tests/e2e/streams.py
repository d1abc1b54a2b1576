"""Clients that are busy while a fleet stops."""

import json
import threading
from typing import Any

import httpx

from tests.e2e.local_fleet import QUESTION, LocalFleet


class Stream:
    """One streamed answer, read by a thread of its own to whatever end it has."""

    def __init__(self, fleet: LocalFleet, max_tokens: int) -> None:
        self._body = {"model": "random-llama", "prompt": QUESTION, "max_tokens": max_tokens, "stream": True}
        self._url = fleet.endpoint + "/v1/completions"
        self.events: list[str] = []
        self.broke: str = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            with httpx.stream("POST", self._url, json={**self._body, "ignore_eos": True}, timeout=60) as answer:
                self.events.extend(line.removeprefix("data: ") for line in answer.iter_lines() if line)
        except httpx.HTTPError as error:
            self.broke = repr(error)

    def end(self) -> dict[str, Any]:
        """Its last event; empty where it ended well. It must not break."""
        self._thread.join(timeout=30)
        assert (self._thread.is_alive(), self.broke) == (False, "")
        return {} if self.events[-1] == "[DONE]" else json.loads(self.events[-1])


class Newcomers:
    """Somebody who asks anew every few milliseconds; what became of it."""

    def __init__(self, fleet: LocalFleet) -> None:
        self._url = fleet.endpoint + "/v1/completions"
        self._stop = threading.Event()
        self.outcomes: set[str] = set()
        self._thread = threading.Thread(target=self._ask_on)
        self._thread.start()

    def _ask_on(self) -> None:
        while not self._stop.wait(0.02):
            self.outcomes.add(self._ask())

    def _ask(self) -> str:
        body = {"model": "random-llama", "prompt": "Who is there?", "max_tokens": 2}
        try:
            answer = httpx.post(self._url, json=body, timeout=30)
        except httpx.ConnectError:
            return "refused"
        except httpx.HTTPError as error:
            return repr(error)
        retry = " again later" if "retry-after" in answer.headers else ""
        return f"{answer.status_code}{retry}"

    def end(self) -> set[str]:
        self._stop.set()
        self._thread.join(timeout=30)
        return self.outcomes
