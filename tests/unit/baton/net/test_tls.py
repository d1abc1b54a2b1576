"""Mutual TLS between services: who is admitted, and the errors for flags that do not match."""

import asyncio
import contextlib
import shutil
import ssl

import grpc
import pytest

from baton.errors import ConfigError
from baton.net import redis_client, rpc, tls
from baton.process.settings import ServiceFlags
from baton.v1 import node_pb2, node_pb2_grpc
from tests.unit.baton.net.certificates import make_authority, make_identity

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


class Node(node_pb2_grpc.NodeServicer):
    async def Attach(self, requests, context):  # noqa: N802
        yield node_pb2.StepBatch()


async def call(server_tls, client_tls, server_token="", client_token=""):
    server = rpc.server(server_token)
    node_pb2_grpc.add_NodeServicer_to_server(Node(), server)
    port = rpc.open_port(server, "127.0.0.1:0", server_tls)
    await server.start()
    try:
        async with rpc.channel(f"127.0.0.1:{port}", client_tls) as channel:
            stream = node_pb2_grpc.NodeStub(channel).Attach(timeout=5, metadata=rpc.metadata(client_token))
            await stream.read()
    finally:
        await server.stop(None)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    authority = make_authority(tmp_path_factory.mktemp("tls") / "ours")
    return {
        "node": make_identity(authority, "node"),
        "router": make_identity(authority, "router"),
        "named": make_identity(authority, "named", "DNS:baton.internal"),
    }


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, ours):
    """A certificate of another authority, whose holder trusts ours."""
    flags = make_identity(make_authority(tmp_path_factory.mktemp("tls") / "theirs"), "stranger")
    return tls.load(ServiceFlags(**(flags | {"tls_ca": ours["node"]["tls_ca"]})))


def load(flags, name=""):
    return tls.load(ServiceFlags(**flags, tls_name=name))


def test_a_client_with_a_certificate_is_accepted(ours):
    asyncio.run(call(load(ours["node"]), load(ours["router"])))


def test_a_token_is_checked_in_addition_to_a_certificate(ours):
    asyncio.run(call(load(ours["node"]), load(ours["router"]), "secret", "secret"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        asyncio.run(call(load(ours["node"]), load(ours["router"]), "secret", "wrong"))
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_clients_without_a_valid_certificate_are_refused(ours, stranger):
    for client in (None, stranger):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            asyncio.run(call(load(ours["node"]), client))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_server_with_a_certificate_of_another_authority_is_refused(ours, stranger):
    with pytest.raises(grpc.aio.AioRpcError):
        asyncio.run(call(stranger, load(ours["router"])))


def test_tls_name_replaces_the_address_in_certificates(ours):
    with pytest.raises(grpc.aio.AioRpcError):
        asyncio.run(call(load(ours["named"]), load(ours["router"])))
    asyncio.run(call(load(ours["named"]), load(ours["router"], "baton.internal")))


def test_tls_replaces_the_token_beyond_loopback(ours):
    with pytest.raises(ConfigError, match="--tls-cert"):
        rpc.bind_address("0.0.0.0", 1, "")
    assert rpc.bind_address("0.0.0.0", 1, "", load(ours["node"])) == "0.0.0.0:1"


def test_without_flags_there_is_no_tls():
    assert tls.load(ServiceFlags()) is None


def test_inconsistent_flags_are_named(ours, tmp_path):
    node, other = ours["node"], ours["router"]
    empty = tmp_path / "empty"
    empty.write_text("")
    for flags, said in (
        ({"tls_cert": node["tls_cert"]}, "--tls-key, --tls-ca"),
        (node | {"tls_key": other["tls_key"]}, "--tls-key"),
        (node | {"tls_key": str(tmp_path / "none")}, "--tls-key: cannot read"),
        (node | {"tls_ca": str(empty)}, "--tls-ca"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(flags)


@contextlib.asynccontextmanager
async def behind_tls(redis_url, flags):
    """The address of the same Redis behind TLS."""
    _, _, address = redis_url.partition("://")
    host, _, port = address.partition("/")[0].rpartition(":")

    async def pump(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def forward(reader, writer):
        to_reader, to_writer = await asyncio.open_connection(host.rpartition("@")[2], int(port))
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer), return_exceptions=True)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(flags["tls_cert"], flags["tls_key"])
    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()


@pytest.mark.anyio
async def test_redis_can_be_reached_through_tls(ours, redis_url):
    async with behind_tls(redis_url, ours["node"]) as url:
        redis = redis_client.connect(f"{url}?ssl_ca_certs={ours['node']['tls_ca']}", timeout_s=2)
        await redis.set("baton:x", "y")
        assert await redis.get("baton:x") == b"y"
        await redis.aclose()
        with pytest.raises(ConfigError, match="no Redis answers"):  # nobody of ours has signed for it
            await redis_client.check(url)
