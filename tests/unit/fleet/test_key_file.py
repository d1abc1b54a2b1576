from pathlib import Path

import pytest

from baton.errors import ConfigError
from fleet.key_file import first_key, key_of


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("# ours\n\nplain\nother\n", "plain"),
        ('sha256:00ff\n{"sha256": "aa", "name": "n"}\n{"key": "of-json", "name": "m"}\n', "of-json"),
        ("sha256:00ff\n", ""),
    ],
)
def test_the_first_key_that_can_be_sent(tmp_path: Path, text: str, key: str):
    (tmp_path / "keys").write_text(text)
    assert first_key(str(tmp_path / "keys")) == key


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--api-key-file: .*No such file"):
        first_key(str(tmp_path / "none"))
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"--api-key-file: .* is not UTF-8 text"):
        first_key(str(tmp_path / "keys"))


def test_a_file_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("BATON_API_KEY", "sk-env,sk-other")
    path = tmp_path / "keys"
    path.write_text("sk-file\n")
    assert (key_of(str(path)), key_of("")) == ("sk-file", "sk-env")


@pytest.mark.parametrize("key", ["ключ", "a\tb"])
def test_a_key_that_no_http_header_can_hold_is_named(tmp_path: Path, key: str):
    path = tmp_path / "keys"
    path.write_text(f"{key}\n")
    with pytest.raises(ConfigError, match=f"the API key in {path} cannot be sent"):
        key_of(str(path))


def test_a_file_of_digests_leaves_the_key_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATON_API_KEY", "sk-env")
    path = tmp_path / "keys"
    path.write_text("sha256:00ff\n")
    assert key_of(str(path)) == "sk-env"
