"""The nodes chosen for one attempt, and its work, which is counted on them until they report their load again."""

import time
from collections.abc import Callable

import msgspec

from baton.net.registry import NodeRecord
from baton.telemetry.timeline import Value
from router.nodes.link import NodeLink
from router.placing.policy import NodeChoice


class Placement(msgspec.Struct, eq=False):
    """Where an attempt runs. Its work is counted on its nodes from `begin` to `end`."""

    prefill: NodeLink | None  # None: the decode node does it all
    decode: NodeLink | None  # None: only one token, or only prompt work, is wanted
    choice: NodeChoice
    num_tokens: int
    on_change: Callable[[], None]
    on_computed: Callable[[], None] | None = None
    is_computed: bool = False

    def begin(self) -> None:
        """Count the attempt's work on its nodes from now on."""
        if (computing := self._computing) is not None:
            computing.state.send_prompt(self.choice.prompt_ms, time.monotonic())
        if self.decode is not None:
            state = self.decode.state
            state.send_decode(self.num_tokens, self.choice.num_missing_blocks)
            if self.prefill is not None and state.num_waiting:  # it waits behind the others
                state.num_waiting += 1

    def computed(self) -> None:
        """Note that the prompt is computed. Idempotent."""
        if self.on_computed is not None and not self.is_computed:
            self.on_computed()
        self._prompt_done()

    def end(self) -> None:
        """Note that the attempt has ended."""
        self._prompt_done()
        if self.decode is not None:
            self.decode.state.decode_done(self.num_tokens, self.choice.num_missing_blocks)
            self.on_change()

    @property
    def compute_s(self) -> float:
        """The predicted time to compute the whole prompt without any cache."""
        if self._computing is None:
            return 0.0
        state = self._computing.state
        return state.cost.prefill_ms(self.num_tokens, 0, state.chunk_tokens) / 1000

    @property
    def pair(self) -> tuple[NodeRecord, NodeRecord] | None:
        """The nodes between which KV is transferred; None if a single node does it all."""
        if self.prefill is None or self.decode is None:
            return None
        return self.prefill.record, self.decode.record

    @property
    def described(self) -> dict[str, Value]:
        """Attributes for the request's timeline."""
        return {
            **self.names,
            "num_uncached_tokens": self.choice.num_uncached_tokens,
            "num_missing_blocks": self.choice.num_missing_blocks,
        }

    @property
    def names(self) -> dict[str, str]:
        """The ids of the chosen nodes, by role."""
        names = {}
        if self.prefill is not None:
            names["prefill"] = self.prefill.record.node_id
        if self.decode is not None:
            names["decode"] = self.decode.record.node_id
        return names

    def _prompt_done(self) -> None:
        if self.is_computed:
            return
        self.is_computed = True
        if (computing := self._computing) is not None:
            computing.state.prompt_done(self.choice.prompt_ms)
            self.on_change()

    @property
    def _computing(self) -> NodeLink | None:
        return self.prefill or self.decode
