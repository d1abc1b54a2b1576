"""Pages and plots are complete, have no assets, and escape their input."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from baton.errors import ConfigError
from bench._report import disagg, files, page, svg


def drawing(text: str) -> ElementTree.Element:
    found = re.search(r"<svg.*?</svg>", text, re.DOTALL)
    assert found
    return ElementTree.fromstring(re.sub(r"class=([\w]+)", r'class="\1"', found[0]))


def test_lines_lie_within_the_drawing_and_skip_what_is_not_finite():
    chart = svg.lines(
        [svg.Line("a<b", [0, 1, 2, 3], [1, math.nan, 3, 5], dots=True)], "s", "ms", limit=4.0, marks=[1.5]
    )
    root = drawing(chart)
    dots = root.findall("circle")
    assert len(dots) == 3
    heights = [float(dot.attrib["cy"]) for dot in dots]
    assert heights == sorted(heights, reverse=True)
    assert all(0 <= height <= 300 for height in heights)
    assert "a&lt;b" in chart


def test_bars_are_as_high_as_their_values():
    root = drawing(svg.bars(["x", "y"], [("one", [1.0, 2.0]), ("two", [4.0, math.nan])], "n"))
    heights = [float(bar.attrib["height"]) for bar in root.findall("rect")]
    assert len(heights) == 3
    assert heights[2] / heights[0] == 2.0 or heights[1] / heights[0] == 4.0


def test_empty_data_is_not_drawn():
    assert "<svg" not in svg.lines([svg.Line("a", [], [])], "s", "ms")


def test_axis_steps_are_round():
    assert [svg.nice_step(rough) for rough in (0.03, 1, 1.2, 3, 70)] == [0.05, 1, 2, 5, 100]


def test_a_page_is_one_file_and_escapes_its_input(tmp_path: Path):
    body = page.tiles([("1", "<b>")]) + page.card("t", page.table(["a"], [["<script>alert(1)</script>"], ["FAIL"]]))
    page.write(tmp_path / "p.html", "A & B", ["note <i>"], body)
    text = (tmp_path / "p.html").read_text()
    assert "<script" not in text
    assert "src=" not in text
    assert "A &amp; B" in text
    assert "class=bad" in text
    assert "prefers-color-scheme:dark" in text


def a_report(*goods: tuple[float, float]) -> dict:
    def side(at: int) -> dict:
        runs = [
            {"prompt_tokens": 100 * (i + 1), "output_tokens": 10, "rate": 5.0, "goodput_per_s": good[at]}
            for i, good in enumerate(goods)
        ]
        storms = [{"idle_s": 0.01, "storm_s": 0.02 + at, "ratio": 2.0}, {"idle_s": 0.01, "storm_s": 0.9, "ratio": 90.0}]
        return {"runs": runs, "storms": storms}

    return {"machine": "m", "command": "c", "sides": {"split": side(0), "colocated": side(1)}}


def test_the_better_side_is_named_and_where_it_changes(tmp_path: Path):
    report = a_report((1.0, 2.0), (3.0, 3.1), (5.0, 2.0))
    first, second, third = disagg.advice(report)
    assert first.startswith("100:10: run colocated")
    assert "crossover" not in first
    assert second.startswith("200:10: run either")
    assert third.startswith("300:10: run split")
    assert "crossover" in third
    assert "20.0" in disagg.text(report)  # from the less disturbed round
    disagg.write_html(tmp_path / "d.html", report)
    assert (tmp_path / "d.html").read_text().count("<svg") == 4


def test_an_unwritable_file_is_reported_before_the_work(tmp_path: Path):
    files.check(None, "", str(tmp_path / "new.json"))
    assert list(tmp_path.iterdir()) == []
    for name, why in ((tmp_path / "no" / "r.json", "does not exist"), (tmp_path, "it is a folder")):
        with pytest.raises(ConfigError, match=f"cannot write to .*{why}"):
            files.check(str(name))


def test_a_report_without_requests_is_valid_json(tmp_path: Path):
    files.write_json(str(tmp_path / "r.json"), {"ttft_p50_s": math.nan, "phases": ("a",)})
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"ttft_p50_s": None, "phases": ["a"]}
