"""The interface through which a node's link delivers the node's messages to an attempt.

An attempt that uses two nodes is registered as a leg with both links. `node` is passed only with messages that either
of them may send.
"""

from typing import Protocol

from baton.v1 import node_pb2, types_pb2
from baton.v1.types_pb2 import TokenLogprobs


class Node(Protocol):
    """The node that sent a message, for a leg to compare with its own nodes."""

    def avoid(self) -> None:
        """Send it no new requests for a moment."""


class Leg:
    """Ignores all messages; attempts override the methods for those that they need."""

    key: int
    attempt: int
    next_index: int = 0  # output position of the next token of a step batch
    fresh: list[int]  # tokens of the batch being read

    def on_granted(self, granted: node_pb2.Granted) -> None:
        """The decode node has accepted the leg."""

    def on_first_token(self, first: types_pb2.FirstToken) -> None:
        """The prefill node has sampled the first token."""

    def on_transferred(self, transferred: node_pb2.Transferred) -> None:
        """The prefill node's last message: the decode node has accepted the KV transfer."""

    def on_tokens(self, logprobs: list[TokenLogprobs] | None) -> None:
        """Take the tokens in `fresh`; `next_index` is the output position after the last of them."""

    def on_started(self, started: types_pb2.Started) -> None:
        """The leg's first step on the decode node is complete."""

    def on_finished(self, finished: types_pb2.Finished) -> None:
        """The decode node's last message: the request has ended."""

    def on_failed(self, failed: node_pb2.Failed, node: Node) -> None:
        """This node has refused the leg, or failed to complete it."""

    def on_rows_lost(self) -> None:
        """A token's index shows that tokens before it were lost."""

    def on_lost(self, node: Node) -> None:
        """The node is lost: no more messages will come from it."""
