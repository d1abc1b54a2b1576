"""Which nodes a router uses: which it suspects, and whose model it serves."""

from types import SimpleNamespace
from typing import Any

import pytest

from baton.net.registry import NodeRecord
from router.nodes.fleet_view import FleetView


def make_link(node_id: str, role: str = "decode", model: str = "cafe", **state: Any) -> Any:
    record = NodeRecord(
        node_id=node_id, role=role, epoch=1, state="ready", address="", model_fingerprint=model, block_size=len(model)
    )
    usual = {"alive": True, "speaks": True, "draining": False, "accepting": True, "serves": True}
    return SimpleNamespace(record=record, **(usual | state))


def view_of(*links: Any) -> FleetView:
    view = FleetView(None, "router", "", lambda: None, None)  # type: ignore[arg-type]
    view._links = {(link.record.node_id, 1): link for link in links}
    view._on_change()
    return view


@pytest.mark.parametrize(
    ("num_others", "num_that_speak", "may"),
    [(0, 0, False), (1, 0, False), (1, 1, True), (2, 1, False), (3, 1, False), (3, 2, True), (4, 2, False)],
)
def test_a_node_is_suspected_where_half_of_its_pool_speaks(num_others: int, num_that_speak: int, may: bool) -> None:
    silent = make_link("silent")
    others = [make_link(f"d{n}", speaks=n < num_that_speak) for n in range(num_others)]
    strangers = [make_link(f"p{n}", "prefill") for n in range(3)] + [make_link("dead", alive=False)]
    assert view_of(silent, *others, *strangers)._may_suspect(silent) is may


def test_a_model_is_served_as_long_as_one_of_its_nodes_lives() -> None:
    first, second, other = make_link("d0"), make_link("d1"), make_link("d2", model="beef0", alive=False)
    view = view_of(other, first, second)
    assert view.facts is not None
    other.alive = True
    view._on_change()
    assert (view.facts.model_fingerprint, view.facts.block_size) == ("cafe", 4)
    assert view.accepting("decode") == [first, second]
    first.alive = first.accepting = False
    view._on_change()
    assert view.accepting("decode") == [second]
    second.alive = False
    view._on_change()
    assert (view.facts.model_fingerprint, view.facts.block_size) == ("beef0", 5)
    assert view.accepting("decode") == [other]
    other.alive = False
    view._on_change()
    assert view.facts.model_fingerprint == "beef0"


def test_it_is_ready_where_each_pool_that_it_has_serves() -> None:
    prefill, decode = make_link("p", "prefill"), make_link("d")
    view = view_of(prefill, decode, make_link("full", serves=False))
    assert (view.ready, view.expects_prefill) == (True, True)
    prefill.serves = False
    assert not view.ready
    prefill.draining = True  # it has gone on purpose
    assert (view.ready, view.expects_prefill) == (True, False)
    decode.serves = False
    assert not view.ready
