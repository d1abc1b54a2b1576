"""Asks the other routers of the fleet, over their admin ports, for their recent statistics and for traces."""

import asyncio
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from baton.net import http_get
from baton.net.registry import NodeRecord

TIMEOUT_S = 0.8


class Peers:
    """Asks all routers at once, waiting TIMEOUT_S at most. Those that do not answer are left out."""

    def __init__(self, router_id: str, service_token: str) -> None:
        self._router_id, self._token = router_id, service_token

    def others(self, services: list[NodeRecord]) -> list[NodeRecord]:
        """Return the routers among `services`, except this one."""
        return [record for record in services if record.role == "router" and record.node_id != self._router_id]

    async def recent(self, peers: list[NodeRecord]) -> dict[str, dict[str, Any]]:
        """Return each router's `FleetReport.local`, by router id."""
        answers = await self._ask(peers, "/admin/router")
        return {
            peer.node_id: answer
            for peer, answer in zip(peers, answers, strict=True)
            if answer is not None and answer.get("router_id") == peer.node_id  # another host's loopback leads elsewhere
        }

    async def trace(self, peers: list[NodeRecord], request_id: str) -> dict[str, Any] | None:
        """Return a request's trace from the router that served it; None if no router has it any more."""
        answers = await self._ask(peers, f"/admin/trace/{quote(request_id, safe='')}?here")
        return next((answer for answer in answers if answer is not None), None)

    async def _ask(self, peers: list[NodeRecord], path: str) -> list[dict[str, Any] | None]:
        return await asyncio.gather(*(self._get(peer.metrics_url, path) for peer in peers))

    async def _get(self, url: str, path: str) -> dict[str, Any] | None:
        try:
            parts = urlsplit(url)
            status, body = await http_get.get(parts.hostname or "", parts.port or 80, path, TIMEOUT_S, key=self._token)
            answer = msgspec.json.decode(body)
        except (OSError, ValueError):  # of a URL, too; msgspec.DecodeError is a ValueError
            return None
        return answer if status == 200 and isinstance(answer, dict) else None
