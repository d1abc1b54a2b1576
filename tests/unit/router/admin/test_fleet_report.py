"""What dashboards draw of the last minutes."""

from types import SimpleNamespace

import pytest

from router.admin import fleet_report
from router.admin.fleet_report import FleetReport
from router.recent import NUM_SLOTS, SLOT_S, Recent


class Dispatcher(SimpleNamespace):
    async def services(self):
        return []


class Peers:
    def others(self, services):
        return []

    async def recent(self, peers):
        return {}


@pytest.mark.anyio
@pytest.mark.parametrize("into_slot_s", [0.0, SLOT_S / 2, SLOT_S * 0.99])
async def test_rates_do_not_depend_on_how_far_the_present_two_seconds_are(monkeypatch, into_slot_s):
    now = SimpleNamespace(s=0.0)
    seen = Recent(lambda: now.s)
    monkeypatch.setattr(fleet_report, "RECENT", seen)
    for tenth in range(600 + round(10 * into_slot_s)):
        now.s = tenth / 10
        seen.request(200, 1, 1, 0)  # ten a second
    now.s = 60 + into_slot_s
    dispatcher = Dispatcher(
        router_id="r", num_in_flight=0, waiting=list, links=[], num_index_blocks=0, expects_prefill=True
    )
    rates = SimpleNamespace(history=[0.0] * NUM_SLOTS)
    report = await FleetReport(dispatcher, Peers(), rates, ("m",)).whole()
    assert report["now"]["requests_per_s"] == 10
    assert report["routers"][0]["requests_per_s"] == 10
    assert report["history"]["requests_per_s"][-5:] == [10] * 5
    assert len({len(column) for name, column in report["history"].items() if name != "slot_s"}) == 1
