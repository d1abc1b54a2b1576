import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from baton.errors import ConfigError, Unauthenticated
from router.http import tenants
from router.http.auth import APIKeys
from router.http.tenants import ANYBODY


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_plain_hashed_and_json_keys(tmp_path: Path) -> None:
    hashed = sha256(b"key-b").hexdigest()
    limited = {"key": "key-c", "name": "search", "models": ["tiny"], "requests_per_minute": 5, "priority": "high"}
    path = write(tmp_path / "keys", "# comment", "", "key-a", "  # another", f"sha256:{hashed}", limited)
    keys = APIKeys.load(str(path), "key-d")
    found = {name: keys.tenant(f"Bearer key-{name}") for name in "abcd"}
    assert len({tenant.salt for tenant in found.values()}) == 4
    assert len({tenant.name for tenant in found.values()}) == 4
    assert found["c"].name == "search"
    assert (found["c"].priority, found["c"].models, found["c"].is_limited) == (0, {"tiny"}, True)
    assert found["a"].priority == 1
    assert not found["a"].is_limited
    for wrong in ("", "key-a", "Bearer", "Bearer key-x", "Basic key-a", f"Bearer {hashed}", "Bearer # comment"):
        with pytest.raises(Unauthenticated):
            keys.tenant(wrong)


def test_without_keys_every_client_is_anonymous() -> None:
    assert APIKeys.load("", "").tenant("") is ANYBODY


def test_only_keys_of_one_group_share_a_cache(tmp_path: Path) -> None:
    lines = [
        {"key": "a", "cache_group": "team"},
        {"key": "b", "cache_group": "team"},
        {"key": "c", "cache_isolation": False},
        {"key": "d", "cache_isolation": False},
        {"key": "e"},
    ]
    salts = [tenant.salt for tenant in tenants.read(write(tmp_path / "keys", *lines)).values()]
    assert salts[0] == salts[1]
    assert salts[2] == salts[3]
    assert len(set(salts)) == 3
    assert {len(salt) for salt in salts} == {16}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        {},
        {"key": "secret-key", "sha256": "0" * 64},
        {"key": "secret-key", "name": "no spaces"},
        {"key": "secret-key", "colour": "red"},
        {"key": "secret-key", "priority": "highest"},
        {"key": "secret-key", "requests_per_minute": -1},
        {"key": "secret-key", "requests_per_minute": "many"},
        {"key": "secret-key", "tokens_per_minute": -1},
        {"key": "secret-key", "max_tokens": -1},
        {"key": "secret-key", "max_ttft_s": -0.1},
        {"sha256": "abcd"},
        "sha256:xyz",
        '{"key": "secret-key", "name": }',
    ],
)
def test_the_error_names_a_bad_line_without_showing_it(tmp_path: Path, line: object) -> None:
    path = write(tmp_path / "keys", "good", line)
    with pytest.raises(ConfigError, match="line 2") as raised:
        tenants.read(path)
    assert "secret-key" not in raised.value.message


def test_invalid_json_is_answered_with_its_position(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", '{"key": "secret-key", "name": }')
    with pytest.raises(ConfigError, match=r"line 1: JSON is malformed: invalid character \(byte 30\)"):
        tenants.read(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "holds no key"),
        (b"# nobody\n", "holds no key"),
        (b"a" * 10, "larger than 9"),
    ],
)
def test_a_file_without_keys_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, why: str
) -> None:
    monkeypatch.setattr(tenants, "_MAX_FILE_BYTES", 9)
    path = tmp_path / "keys"
    path.write_bytes(b"a" * 9)
    assert len(tenants.read(path)) == 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=why):
        tenants.read(path)


def test_either_rate_is_a_limit() -> None:
    limits = ("requests_per_minute", "tokens_per_minute")
    assert all(tenants.Tenant(**{name: 5}).is_limited for name in limits)  # type: ignore[arg-type]


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "keys", "first")
    keys = APIKeys.load(str(path), "inline")
    write(path, "second", "third")
    os.utime(path, ns=(1, 1))
    keys.reload()
    with pytest.raises(Unauthenticated):
        keys.tenant("Bearer first")
    assert keys.tenant("Bearer second").salt
    assert keys.tenant("Bearer inline").salt
    write(path, '{"key": "secret"')
    os.utime(path, ns=(2, 2))
    for _ in range(3):
        keys.reload()
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # not read again until it has changed again
    assert keys.tenant("Bearer second").salt
    path.unlink()
    keys.reload()
    assert keys.tenant("Bearer second").salt
    assert "secret" not in caplog.text
    write(path, "fourth")
    keys.reload()
    assert keys.tenant("Bearer fourth").salt
