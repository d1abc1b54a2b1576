"""The nodes of one attempt, and the work that they are counted with until they have told their load again."""

import contextlib
import time
from collections.abc import Callable, Iterator

import msgspec

from baton.errors import BatonError
from baton.telemetry.timeline import Timeline, Value
from router.nodes.link import NodeLink
from router.placing.policy import Choice


class Placement(msgspec.Struct, eq=False):
    """Made by `candidates`; counted from `begin` to `end`."""

    prefill: NodeLink | None  # None: all on the decode node
    decode: NodeLink | None  # None: only one token is wanted
    choice: Choice
    num_tokens: int
    on_change: Callable[[], None]
    on_computed: Callable[[], None] | None = None
    is_computed: bool = False

    def begin(self) -> None:
        """Count the work."""
        if self._computing is not None:
            self._computing.state.send_prompt(self.choice.prompt_ms, time.monotonic())
        if self.decode is not None:
            state = self.decode.state
            state.send_decode(self.num_tokens, self.choice.num_missing_blocks)
            if self.prefill is not None and state.num_waiting:  # it waits behind those
                state.num_waiting += 1

    def computed(self) -> None:
        """The prompt is computed. Idempotent."""
        if self.on_computed is not None and not self.is_computed:
            self.on_computed()
        self._prompt_done()

    @property
    def node_ids(self) -> list[str]:
        """Of the nodes that take part."""
        return [link.record.node_id for link in (self.prefill, self.decode) if link is not None]

    def end(self) -> None:
        """The attempt is over."""
        self._prompt_done()
        if self.decode is not None:
            self.decode.state.decode_done(self.num_tokens, self.choice.num_missing_blocks)
            self.on_change()

    @property
    def described(self) -> dict[str, Value]:
        """For timelines."""
        counts = {
            "num_uncached_tokens": self.choice.num_uncached_tokens,
            "num_missing_blocks": self.choice.num_missing_blocks,
        }
        return {**self._names, **counts}

    @contextlib.contextmanager
    def timed(self, timeline: Timeline, name: str, attempt: int) -> Iterator[None]:
        """Enter what is done meanwhile into a timeline, with the nodes and the error in which it ends."""
        began_s, error = time.monotonic(), {}
        try:
            yield
        except BatonError as raised:
            error = {"error": raised.code or ""}
            raise
        finally:
            timeline.add(name, began_s, attempt=attempt, **self._names, **error)

    def _prompt_done(self) -> None:
        if self._computing is not None and not self.is_computed:
            self._computing.state.prompt_done(self.choice.prompt_ms)
            self.on_change()
        self.is_computed = True

    @property
    def _names(self) -> dict[str, str]:
        nodes = {"prefill": self.prefill, "decode": self.decode}
        return {role: link.record.node_id for role, link in nodes.items() if link is not None}

    @property
    def _computing(self) -> NodeLink | None:
        return self.prefill or self.decode
