"""The state of the fleet as one JSON object, which any router can report: loads of nodes, latencies of all routers.

`local` is what this router has seen, for the others to ask; `whole` combines it with theirs. Both are cheap, and
`whole` is made about once a second at most, however many clients poll it.
"""

import asyncio
import time
from typing import Any

import msgspec

from baton.net.registry import NodeRecord
from router.admin import bottleneck
from router.admin.peers import Peers
from router.nodes.link import NodeLink
from router.nodes.rates import NodeRates
from router.recent import NUM_SLOTS, RECENT, SLOT_S, Slot, from_json, merged, percentiles_ms, to_json
from router.serving.dispatch import Dispatcher

_FRESH_S = 0.8
_REDIS_GONE_S = 8.0
_NOW_SLOTS = 5  # slots that "now" averages over
_LATENCY_SLOTS = 30  # slots that the current percentiles are taken over
_SMOOTH_SLOTS = 5  # slots that each point of a percentile's history is taken over


class FleetReport:
    """Makes the report, as this router sees the fleet."""

    def __init__(self, dispatcher: Dispatcher, peers: Peers, rates: NodeRates, models: tuple[str, ...]) -> None:
        self._dispatcher, self._peers, self._rates, self._models = dispatcher, peers, rates, models
        self._began_s = time.monotonic()
        self._made_s = float("-inf")
        self._latest: dict[str, Any] = {}
        self._making = asyncio.Lock()
        self._services: list[NodeRecord] = []
        self._services_s = float("-inf")

    def local(self) -> dict[str, Any]:
        """Return what this router has seen: its part of the report of any router."""
        return {
            "router_id": self._dispatcher.router_id,
            "num_in_flight": self._dispatcher.num_in_flight,
            "num_waiting": len(self._dispatcher.waiting()),
            "uptime_s": round(time.monotonic() - self._began_s, 1),
            "slots": to_json(RECENT.slots()),
        }

    async def whole(self) -> dict[str, Any]:
        """Return the report of the whole fleet, including what other routers have seen. It may be a second old."""
        async with self._making:
            if time.monotonic() - self._made_s > _FRESH_S:
                self._latest = await self._make()
                self._made_s = time.monotonic()
        return self._latest

    async def _make(self) -> dict[str, Any]:
        answers_redis = await self._find_services()
        others = self._peers.others(self._services)
        answers = await self._peers.recent(others)
        mine = self.local()
        parts = {self._dispatcher.router_id: mine, **answers}
        slots = _over(_added([RECENT.slots(), *(_slots(answer) for answer in answers.values())]))
        nodes = [self._node(link) for link in self._dispatcher.links]
        return {
            "time": round(time.time(), 1),
            "router_id": self._dispatcher.router_id,
            "models": self._models,
            "redis": {"answers": answers_redis, "num_index_blocks": self._dispatcher.num_index_blocks},
            "routers": _routers(self._services, others, parts, self._dispatcher.router_id),
            "nodes": sorted(nodes, key=lambda node: (node["role"] != "prefill", node["node_id"])),
            "transfers": _transfers(slots[:_NOW_SLOTS]),
            "bottleneck": msgspec.to_builtins(self._judge(nodes, sum(part["num_waiting"] for part in parts.values()))),
            "now": _now(slots, sum(node["output_tokens_per_s"] for node in nodes)),
            "history": _history(slots, list(self._rates.history)[-len(slots) :]),
        }

    async def _find_services(self) -> bool:
        """Update the list of services; returns whether Redis has answered recently, since one answer may be late."""
        services, now_s = await self._dispatcher.services(), time.monotonic()
        if services is not None:
            self._services, self._services_s = services, now_s
        return now_s - self._services_s < _REDIS_GONE_S

    def _judge(self, nodes: list[dict[str, Any]], num_unplaced: int) -> bottleneck.Bottleneck:
        fields = bottleneck.PoolNode.__struct_fields__
        ready = [bottleneck.PoolNode(**{k: n[k] for k in fields}) for n in nodes if n["state"] == "ready"]
        verdict = bottleneck.judge(ready, num_unplaced, expects_prefill=self._dispatcher.expects_prefill)
        return bottleneck.with_missing(verdict, [n["node_id"] for n in nodes if n["state"] in ("lost", "stuck")])

    def _node(self, link: NodeLink) -> dict[str, Any]:
        record, load, rates = link.record, link.load, self._rates.of(link)
        num_blocks = load.num_blocks or record.num_blocks
        return {
            "node_id": record.node_id,
            "role": record.role,
            "state": link.health,
            "epoch": record.epoch,
            "host": record.host,
            "address": record.address,
            "num_blocks": num_blocks,
            "num_cached_blocks": load.num_cached_blocks,
            "kv_usage": round(1 - load.num_free_blocks / num_blocks, 4) if num_blocks and load.num_blocks else 0.0,
            "kv_cached": round(load.num_cached_blocks / num_blocks, 4) if num_blocks else 0.0,
            "num_running": load.num_running,
            "num_waiting": load.num_waiting,
            "num_waiting_tokens": load.num_waiting_tokens,
            "prefill_tokens_per_s": round(load.prefill_tokens_per_s),
            "output_tokens_per_s": round(rates.output_tokens, 1),
            "prompt_tokens_per_s": round(rates.prompt_tokens, 1),
            "cache_hit_ratio": None if rates.cache_hit_ratio is None else round(rates.cache_hit_ratio, 4),
            "preemptions_per_min": round(rates.preemptions_per_min, 1),
            "step_ms": round(1000 * load.step_s, 2),
        }


def _slots(answer: dict[str, Any]) -> list[Slot]:
    try:
        return from_json(answer.get("slots"))
    except msgspec.ValidationError:  # another version of Baton
        return []


def _over(slots: list[Slot]) -> list[Slot]:
    """Drop the latest slot, which is incomplete: it would look like a dip at the end of every line."""
    return slots[1:]


def _added(columns: list[list[Slot]]) -> list[Slot]:
    """Add up the slots of several routers by age, latest first."""
    return [merged(column[age] for column in columns if age < len(column)) for age in range(NUM_SLOTS)]


def _routers(
    services: list[NodeRecord], others: list[NodeRecord], parts: dict[str, dict[str, Any]], own_id: str
) -> list[dict[str, Any]]:
    records = {record.node_id: record for record in services}
    found = []
    for node_id in [own_id, *sorted(record.node_id for record in others)]:
        record, part = records.get(node_id), parts.get(node_id)
        row: dict[str, Any] = {"node_id": node_id, "answers": part is not None, "state": "ready", "host": ""}
        if record is not None:
            row |= {"state": record.state, "host": record.host, "address": record.address, "epoch": record.epoch}
        if part is not None:
            now = _over(RECENT.slots() if node_id == own_id else _slots(part))[:_NOW_SLOTS]
            row |= {name: part.get(name) for name in ("num_in_flight", "num_waiting", "uptime_s")}
            row["requests_per_s"] = round(merged(now).requests / (SLOT_S * _NOW_SLOTS), 2)
        found.append(row)
    return found


def _transfers(slots: list[Slot]) -> list[dict[str, Any]]:
    seconds = SLOT_S * len(slots)
    flows = merged(slots).flows.items()
    return [
        {
            "prefill": pair.partition(">")[0],
            "decode": pair.partition(">")[2],
            "bytes_per_s": round(num_bytes / seconds),
            "transfers_per_s": round(num / seconds, 2),
        }
        for pair, (num_bytes, num) in sorted(flows)
    ]


def _now(slots: list[Slot], output_tokens_per_s: float) -> dict[str, Any]:
    recent, latency, seconds = merged(slots[:_NOW_SLOTS]), merged(slots[:_LATENCY_SLOTS]), SLOT_S * _NOW_SLOTS
    return {
        "requests_per_s": round(recent.requests / seconds, 2),
        "errors_per_s": round(recent.errors / seconds, 2),
        "refused_per_s": round(recent.refused / seconds, 2),
        "output_tokens_per_s": round(output_tokens_per_s, 1),
        "prompt_tokens_per_s": round(recent.prompt_tokens / seconds, 1),
        "cache_hit_ratio": round(latency.cached_tokens / latency.prompt_tokens, 4) if latency.prompt_tokens else None,
        "ttft_ms": percentiles_ms(latency.ttft),
        "tpot_ms": percentiles_ms(latency.tpot),
    }


def _history(slots: list[Slot], output_tokens_per_s: list[float]) -> dict[str, Any]:
    """Return series, oldest first. Percentiles are [p50, p95, p99] over the last _SMOOTH_SLOTS at each point."""
    ttft, tpot = [], []
    for age in reversed(range(len(slots))):
        around = slots[age : age + _SMOOTH_SLOTS]
        ttft.append(percentiles_ms(merged(around).ttft))
        tpot.append(percentiles_ms(merged(around).tpot))
    oldest_first = list(reversed(slots))
    return {
        "slot_s": SLOT_S,
        "ttft_ms": ttft,
        "tpot_ms": tpot,
        "output_tokens_per_s": [round(rate, 1) for rate in output_tokens_per_s],
        "requests_per_s": [round(slot.requests / SLOT_S, 2) for slot in oldest_first],
        "errors_per_s": [round((slot.errors + slot.refused) / SLOT_S, 2) for slot in oldest_first],
    }
