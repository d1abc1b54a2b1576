"""What holds for the house as a whole."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_names_of_the_packages_are_not_those_of_other_distributions():
    """`kernels` is also published by others (ADR 1): whoever else is installed would be imported instead."""
    import kernels

    assert Path(kernels.__file__).parent == ROOT / "kernels"
    assert set(packages_distributions().get("kernels", [])) <= {"baton"}


def test_the_schema_folder_shadows_nothing():
    assert not (ROOT / "proto/__init__.py").exists()


@pytest.mark.parametrize("module", ["baton.net.rpc", "router", "fleet.cli"])
def test_light_rooms_load_neither_torch_nor_numpy(module):
    code = f"import {module}, sys; print([m for m in ('torch', 'numpy', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]
PATH = re.compile(
    r"`((?:baton|bench|decode_node|deploy|docs|engine|fleet|kernels|kv_transfer|prefill_node|router|tests)/[\w/.-]+)`"
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
NUMBER = re.compile(r"\d+(?:[.,–]\d+)*k?")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_link_to_and_name_what_is_there(page):
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing


def test_the_front_page_has_the_figures_of_the_page_on_what_was_measured():
    front = (ROOT / "README.md").read_text().partition("## Measured")[2].partition("\n## ")[0]
    rows = [line for line in front.splitlines() if line.startswith("|") and "`baton " in line]
    assert len(rows) > 8
    measured = set(NUMBER.findall((ROOT / "docs/measured.md").read_text()))
    assert {figure for row in rows for figure in NUMBER.findall(row)} <= measured


def test_figures_of_gpus_are_those_of_the_page_on_gpus():
    lines = (ROOT / "docs/measured.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| H200:")]
    assert len(rows) > 3
    known = set(NUMBER.findall((ROOT / "docs/gpus.md").read_text()))
    assert {figure for row in rows for figure in NUMBER.findall(row)} <= known


def test_every_decision_is_in_the_list_and_bears_its_number():
    listed = (ROOT / "docs/adr/README.md").read_text()
    decisions = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    for page in decisions:
        number = int(page.name[:4])
        title = page.read_text().partition("\n")[0].removeprefix(f"# {number}. ")
        assert f"| [{number}]({page.name}) | {title} |" in listed


def test_the_page_on_security_has_the_limits_of_large_bodies():
    from router.http import exchange, turns

    page = (ROOT / "docs/security.md").read_text()
    assert f"pauses {turns.PAUSES} times as long" in page
    assert f"at most {turns.MAX_WAITING_BYTES >> 20} MiB may wait" in page
    assert f"together | {exchange.MAX_HELD_BYTES >> 20} MiB |" in page
