import asyncio
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ConfigError
from fleet import control


async def handle(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("command") == "refuse":
        raise ConfigError("not now")
    await asyncio.sleep(message.get("for_s", 0))
    return {"got": message}


def with_server(path: Path, talk: Any) -> Any:
    async def run() -> Any:
        server = await control.serve(path, handle, lambda: "decode-1")
        async with server:
            return await asyncio.to_thread(talk)

    return asyncio.run(run())


def test_a_message_gets_its_answer(tmp_path: Path):
    path = tmp_path / "s"
    assert with_server(path, lambda: control.ask(str(path), {"a": 1}, 5)) == {"got": {"a": 1}}


def test_only_the_owner_can_open_it(tmp_path: Path):
    path = tmp_path / "s"
    assert with_server(path, lambda: stat.S_IMODE(path.stat().st_mode)) == 0o600


def test_a_refusal_is_raised_in_the_client(tmp_path: Path):
    path = tmp_path / "s"
    with pytest.raises(ConfigError, match="not now"):
        with_server(path, lambda: control.ask(str(path), {"command": "refuse"}, 5))


def test_a_client_waits_longer_than_its_timeout_while_the_server_says_what_it_waits_for(tmp_path: Path):
    path, waited = tmp_path / "s", []
    message = {"for_s": 3.5}
    assert with_server(path, lambda: control.ask(str(path), message, 2.5, waited.append)) == {"got": message}
    assert set(waited) == {"decode-1"}


def test_work_is_finished_although_its_client_has_hung_up(tmp_path: Path):
    finished = threading.Event()

    async def work(message: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(2.5)
        finished.set()
        return {}

    async def run() -> None:
        server = await control.serve(tmp_path / "s", work)
        async with server:
            _, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"{}\n")
            await writer.drain()
            writer.close()
            assert await asyncio.to_thread(finished.wait, 10)

    asyncio.run(run())


def test_a_silent_server_is_a_clear_error(tmp_path: Path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(path)
        frozen.listen()
        with pytest.raises(ConfigError, match=r"silent for 1 s.*`baton down`"):
            control.ask(path, {}, 1)


def test_an_unreachable_server_is_a_clear_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not answer"):
        control.ask(str(tmp_path / "none"), {}, 1)


def test_invalid_messages_are_answered_and_end_nothing(tmp_path: Path):
    path = tmp_path / "s"

    def talk() -> tuple[bytes, dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"[1]\n")
            first = connection.recv(1000)
        return first, control.ask(str(path), {"b": 2}, 5)

    first, second = with_server(path, talk)
    assert b"not a JSON object" in first
    assert second == {"got": {"b": 2}}


def test_a_line_without_end_is_disconnected(tmp_path: Path):
    path = tmp_path / "s"

    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            connection.sendall(b"x" * 200_000)
            return connection.recv(1000)

    assert with_server(path, talk) == b""
