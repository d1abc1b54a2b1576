"""Builds happen once per source and compiler, completely or not at all; errors say what is missing."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels.cpu import build
from kernels.cpu.build import BuildError
from kernels.cpu.processor import LEVELS, Level

PORTABLE = LEVELS[-1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny source instead of the kernels', and an empty folder to build it in."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "kernels.cpp").write_text(
        '#include "answer.h"\nextern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }'
    )
    (sources / "answer.h").write_text("#define ANSWER 42\n")
    monkeypatch.setattr(build, "SOURCE_DIR", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return sources


def answer(path: Path) -> int:
    return int(ctypes.CDLL(str(path)).answer())


def test_builds_once(folder: Path) -> None:
    first = build.library(PORTABLE)
    assert answer(first) == 42
    made = first.stat().st_mtime_ns
    assert build.library(PORTABLE) == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # no scratch left


def test_rebuilds_when_a_header_changes(folder: Path) -> None:
    first = build.library(PORTABLE)
    (folder / "answer.h").write_text("#define ANSWER 43\n")
    second = build.library(PORTABLE)
    assert first != second
    assert (answer(first), answer(second)) == (42, 43)


def test_levels_have_libraries_of_their_own(folder: Path) -> None:
    other = Level("portable", ("-O1",), frozenset())
    assert build.library(PORTABLE) != build.library(other)


def test_processes_that_build_together_end_with_the_same_library(folder: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(build.library, [PORTABLE] * 4))
    assert len(paths) == 1
    assert answer(paths.pop()) == 42


def test_without_a_compiler_a_built_library_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build.library(PORTABLE)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.library(PORTABLE) == built


def test_without_a_compiler_and_a_library_the_error_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
        build.library(PORTABLE)


def test_a_compiler_that_fails_is_quoted(folder: Path) -> None:
    (folder / "answer.h").write_text("#error broken header\n")
    with pytest.raises(BuildError, match="broken header"):
        build.library(PORTABLE)
    assert not list((folder / "_build").glob("*.so"))


def test_builds_in_the_users_cache_where_the_package_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (folder / "_build").write_text("not a folder")
    built = build.library(PORTABLE)
    assert built.parent == tmp_path / "cache" / "baton" / "kernels"
    assert build.library(PORTABLE) == built


def test_main_names_the_level_in_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main() == 0
    assert "this machine uses" in capsys.readouterr().out


def test_main_reports_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "answer.h").write_text("#error broken header\n")
    assert build.main() == 1
    assert "broken header" in capsys.readouterr().err


def test_main_succeeds_without_a_level_that_does_not_compile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "LEVELS", (Level("new", ("-mno-such-thing",), frozenset()), PORTABLE))
    monkeypatch.setattr(build, "supported", lambda available: list(build.LEVELS))
    assert build.main() == 0
    said = capsys.readouterr()
    assert "new" in said.err
    assert "this machine uses portable" in said.out
