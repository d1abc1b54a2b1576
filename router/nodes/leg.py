"""What of an attempt lives on a node, as the link to that node sees it: all that the node may say of it.

An attempt on two nodes is a leg of both links. Where a message can only come from one of them, nobody asks which.
"""

from typing import Protocol

from baton.v1 import node_pb2, types_pb2
from baton.v1.types_pb2 import TokenLogprobs


class Node(Protocol):
    """The node that a message is from. A leg compares it with those it knows, and may have it left alone."""

    def avoid(self) -> None:
        """No new requests for a moment."""


class Leg:
    """A listener that ignores everything; attempts override what they wait for."""

    key: int
    attempt: int
    next_index: int = 0  # output position of the next token of a step batch
    fresh: list[int]  # tokens of the batch being read

    def on_granted(self, granted: node_pb2.Granted) -> None:
        """The decode node has taken it up."""

    def on_first_token(self, first: types_pb2.FirstToken) -> None:
        """The prefill node has drawn a token."""

    def on_transferred(self, transferred: node_pb2.Transferred) -> None:
        """The decode node has all of the KV, says the prefill node: its last word."""

    def on_tokens(self, logprobs: list[TokenLogprobs] | None) -> None:
        """`fresh` holds the next tokens, up to `next_index`: take them."""

    def on_started(self, started: types_pb2.Started) -> None:
        """Its first step on the decode node is over."""

    def on_finished(self, finished: types_pb2.Finished) -> None:
        """The decode node has said its last word on it."""

    def on_failed(self, failed: node_pb2.Failed, node: Node) -> None:
        """That node has not taken it up, or could not bring it to its end."""

    def on_rows_lost(self) -> None:
        """Rows before this one never came."""

    def on_lost(self, node: Node) -> None:
        """Nothing more comes from that node."""
