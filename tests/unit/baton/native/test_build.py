"""Builds without a compiler, and of sources that do not compile."""

import shutil
import subprocess

import pytest

from baton.native import build, hash_chain, id_text, json_fields


def test_without_a_compiler_the_python_version_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        build.build(build.HASH_CHAIN, tmp_path)
    monkeypatch.setattr(build, "library", lambda _: tmp_path / "none.so")
    assert hash_chain.fastest() is hash_chain.hashed
    assert id_text.load() is None
    assert json_fields.load() is None


def test_a_failed_compilation_leaves_no_file(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "wrong.cpp"
    source.write_text("this is no C++")
    with pytest.raises(subprocess.CalledProcessError):
        build.build(source, tmp_path / "built")
    assert not list((tmp_path / "built").iterdir())
