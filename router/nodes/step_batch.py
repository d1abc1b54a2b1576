"""Delivers the contents of a step batch to the legs concerned, with one call per request for all of its tokens.

Rows and messages of other attempts are dropped, and so are duplicate rows. This code runs for every token.
"""

from collections.abc import Iterable, Mapping

from baton.v1 import node_pb2, types_pb2
from baton.v1.types_pb2 import TokenLogprobs
from router.nodes.leg import Leg, Node

_Legs = Mapping[int, Leg]
_Word = (
    node_pb2.Granted
    | types_pb2.FirstToken
    | node_pb2.Transferred
    | types_pb2.Started
    | types_pb2.Finished
    | node_pb2.Failed
)


def tell_legs(batch: node_pb2.StepBatch, legs: _Legs, node: Node) -> None:
    """Deliver the batch in the order of a request's life: granted, first token, transferred, tokens, its end."""
    for granted in batch.granted:
        if leg := _leg(granted, legs):
            leg.on_granted(granted)
    for first in batch.first_tokens:
        if leg := _leg(first, legs):
            leg.on_first_token(first)
    for transferred in batch.transferred:
        if leg := _leg(transferred, legs):
            leg.on_transferred(transferred)
    if batch.keys:
        _hand_out(batch, legs)
    for started in batch.started:
        if leg := _leg(started, legs):
            leg.on_started(started)
    for finished in batch.finished:
        if leg := _leg(finished, legs):
            leg.on_finished(finished)
    for failed in batch.failed:
        if leg := _leg(failed, legs):
            leg.on_failed(failed, node)


def _leg(word: _Word, legs: _Legs) -> Leg | None:
    leg = legs.get(word.key)
    return leg if leg is not None and leg.attempt == word.attempt else None


def _hand_out(batch: node_pb2.StepBatch, legs: _Legs) -> None:
    touched = []
    for key, attempt, index, token_id in zip(batch.keys, batch.attempts, batch.indices, batch.token_ids, strict=True):
        leg = legs.get(key)
        if leg is None or leg.attempt != attempt:
            continue
        if index != leg.next_index:
            if index > leg.next_index:
                leg.on_rows_lost()
            continue
        leg.next_index = index + 1
        if not leg.fresh:
            touched.append(leg)
        leg.fresh.append(token_id)
    logprobs = _by_leg(batch.logprobs) if batch.logprobs else {}
    for leg in touched:
        leg.on_tokens(logprobs.get((leg.key, leg.attempt)))


def _by_leg(rows: Iterable[TokenLogprobs]) -> dict[tuple[int, int], list[TokenLogprobs]]:
    found: dict[tuple[int, int], list[TokenLogprobs]] = {}
    for row in rows:
        found.setdefault((row.key, row.attempt), []).append(row)
    return found
