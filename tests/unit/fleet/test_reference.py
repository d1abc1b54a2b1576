"""docs/reference is up to date with the code."""

import re
import subprocess
import sys
from pathlib import Path

from fleet import reference


def test_the_pages_match_the_code():
    check = [sys.executable, "-m", "fleet.reference", "--check"]  # in a separate process, which has only our metrics
    done = subprocess.run(check, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_that_differs_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(reference, "pages", lambda: {"flags.md": "new"})
    (tmp_path / "flags.md").write_text("old")
    assert reference.main(["--check"]) == 1
    assert "flags.md" in capsys.readouterr().out
    assert (tmp_path / "flags.md").read_text() == "old"
    assert reference.main([]) == 0
    assert (tmp_path / "flags.md").read_text() == "new"
    assert reference.main(["--check"]) == 0


def test_codes_of_single_errors_are_on_the_page():
    root = Path(__file__).parents[3]
    page = (root / "docs/reference/errors.md").read_text()
    sources = "".join(path.read_text() for path in root.glob("router/**/*.py"))
    codes = set(re.findall(r'coded\(.*, "(\w+)"\)', sources))
    assert len(codes) >= 4
    assert all(f"| `{code}` |" in page for code in codes)


def test_pages_name_metrics_that_exist():
    root = Path(__file__).parents[3]
    known = set(re.findall(r"^\| `(baton_\w+)`", (root / "docs/reference/metrics.md").read_text(), re.MULTILINE))
    for page in [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("deploy/**/*.md")]:
        named = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bbaton_\w+", page.read_text())}
        assert named <= known, page.name
