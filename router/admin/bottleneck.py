"""Determines which pool limits the fleet, with a sentence that says what to do: a pure function of nodes' loads."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from router.nodes.state import ASSUMED_PREFILL_TOKENS_PER_S

BACKLOG_S = 0.5  # backlog of waiting prompts beyond which TTFT suffers visibly
FULL = 0.85  # KV usage at which requests will soon wait for blocks
Verdict = Literal["none", "prefill", "decode", "down"]


class PoolNode(msgspec.Struct, frozen=True, kw_only=True):
    """The load of a ready node."""

    role: str
    kv_usage: float = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    prefill_tokens_per_s: float = 0
    preemptions_per_min: float = 0


class Bottleneck(msgspec.Struct, frozen=True):
    """The limiting pool, and a sentence for the operator."""

    pool: Verdict
    words: str


def judge(nodes: Sequence[PoolNode], num_unplaced: int, *, expects_prefill: bool) -> Bottleneck:
    """Judge the ready nodes. `num_unplaced`: requests for which no node has been chosen yet."""
    prefills = [node for node in nodes if node.role == "prefill"]
    decodes = [node for node in nodes if node.role == "decode"]
    for role, pool in (("decode", decodes), ("prefill", prefills)):
        if not pool and (role == "decode" or expects_prefill):
            waiting = f" {num_unplaced} {_plural('request', num_unplaced)} wait for one." if num_unplaced else ""
            return Bottleneck("down", f"No {role} node is ready.{waiting}")
    computing = prefills or decodes
    num_tokens = sum(node.num_waiting_tokens for node in computing)
    backlog_s = num_tokens / sum(node.prefill_tokens_per_s or ASSUMED_PREFILL_TOKENS_PER_S for node in computing)
    usage = max(node.kv_usage for node in decodes)
    num_waiting = sum(node.num_waiting for node in decodes) if prefills else num_unplaced
    preemptions = sum(node.preemptions_per_min for node in decodes)
    short = usage / FULL if num_waiting or preemptions >= 1 or usage >= FULL else 0.0
    if max(backlog_s / BACKLOG_S, short) < 1:
        return Bottleneck("none", _calm(num_tokens, usage))
    if short < 1 or (prefills and backlog_s / BACKLOG_S >= short):
        return _of_prompts(computing, num_tokens, backlog_s, "prefill" if prefills else "decode")
    return _of_blocks(usage, num_waiting, preemptions)


def with_missing(verdict: Bottleneck, names: Sequence[str]) -> Bottleneck:
    """Append the nodes that are lost or stuck, if any: a fleet that copes without them still needs attention."""
    if not names:
        return verdict
    return Bottleneck(verdict.pool, f"{verdict.words} Lost or stuck: {', '.join(names)}.")


def _of_prompts(
    computing: Sequence[PoolNode], num_tokens: int, backlog_s: float, pool: Literal["prefill", "decode"]
) -> Bottleneck:
    """Blame the pool that computes the prompts."""
    return Bottleneck(
        pool,
        f"{'Prefill' if pool == 'prefill' else 'Computing prompts'} is the bottleneck: {num_tokens:,} prompt tokens "
        f"wait, {backlog_s:.1f} s of work for {len(computing)} {_plural('node', len(computing))}. Add a {pool} node.",
    )


def _of_blocks(usage: float, num_waiting: int, preemptions: float) -> Bottleneck:
    reasons = [f"the fullest node uses {usage:.0%} of its KV blocks"]
    if num_waiting:
        reasons.append(f"{num_waiting} {_plural('request', num_waiting)} wait for blocks")
    if preemptions >= 1:
        reasons.append(f"{preemptions:.0f} preemptions a minute")
    return Bottleneck("decode", f"Decode is the bottleneck: {', '.join(reasons)}. Add a decode node.")


def _calm(num_tokens: int, usage: float) -> str:
    backlog = f"{num_tokens:,} prompt tokens wait" if num_tokens else "no prompt waits"
    return f"Neither pool holds the fleet back: {backlog}, and the fullest node uses {usage:.0%} of its KV blocks."


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
