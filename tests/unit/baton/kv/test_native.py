"""Builds without a compiler, and of sources that do not compile."""

import shutil
import subprocess

import pytest

from baton.kv import byte_count, hash_chain, id_text, json_fields, native


def test_without_a_compiler_the_python_version_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        native.build(native.HASH_CHAIN, tmp_path)
    monkeypatch.setattr(native, "library", lambda _: tmp_path / "none.so")
    assert hash_chain.fastest() is hash_chain.hashed
    assert byte_count.fastest() is byte_count.counted
    assert id_text.load() is None
    assert json_fields.load() is None


def test_a_failed_compilation_leaves_no_file(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "wrong.cpp"
    source.write_text("this is no C++")
    with pytest.raises(subprocess.CalledProcessError):
        native.build(source, tmp_path / "built")
    assert not list((tmp_path / "built").iterdir())
