"""The service token, and where a service may listen without one."""

import asyncio
import signal
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from baton.errors import ConfigError
from baton.net import rpc
from baton.v1 import node_pb2, node_pb2_grpc


class Node(node_pb2_grpc.NodeServicer):
    async def Attach(self, requests, context):  # noqa: N802
        yield node_pb2.StepBatch()


async def call(server_token, client_token):
    server = rpc.server(server_token)
    node_pb2_grpc.add_NodeServicer_to_server(Node(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with rpc.channel(f"127.0.0.1:{port}") as channel:
            stream = node_pb2_grpc.NodeStub(channel).Attach(timeout=5, metadata=rpc.metadata(client_token))
            await stream.read()
    finally:
        await server.stop(None)


@pytest.mark.parametrize(("server_token", "client_token"), [("", ""), ("secret", "secret")])
def test_the_right_token_is_accepted(server_token, client_token):
    asyncio.run(call(server_token, client_token))


@pytest.mark.parametrize("client_token", ["", "wrong", "secret2"])
def test_a_missing_or_wrong_token_is_refused(client_token):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        asyncio.run(call("secret", client_token))
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def check_health(rpc_name: str) -> health_pb2.HealthCheckResponse:
    server = rpc.server("secret")
    servicer = health_aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with rpc.channel(f"127.0.0.1:{port}") as channel:
            call = getattr(health_pb2_grpc.HealthStub(channel), rpc_name)(health_pb2.HealthCheckRequest(), timeout=5)
            return await (call if rpc_name == "Check" else call.read())
    finally:
        await server.stop(None)


SERVER = """
import asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio
from baton.net import rpc

async def main():
    server = rpc.server()
    health_pb2_grpc.add_HealthServicer_to_server(aio.HealthServicer(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


async def watch_what_freezes(port: int, process: "subprocess.Popen[str]") -> float:
    """Freeze a process; return the seconds until a stream from it ends."""
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await stream.read()
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        async with asyncio.timeout(10):
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()
        return time.monotonic() - began


def test_a_frozen_peer_is_noticed_although_its_kernel_answers():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert asyncio.run(watch_what_freezes(int(process.stdout.readline()), process)) < 3.0
        finally:
            process.kill()


async def call_one_that_answers_late(delay_s: float) -> None:
    server = rpc.server()
    node_pb2_grpc.add_NodeServicer_to_server(Node(), server)
    port = rpc.open_port(server, "127.0.0.1:0")
    await server.start()
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader, writer):
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    async def pass_on(reader, writer):
        await asyncio.sleep(delay_s)
        there = await asyncio.open_connection("127.0.0.1", port)
        pumps.update((asyncio.create_task(pump(reader, there[1])), asyncio.create_task(pump(there[0], writer))))

    front = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    try:
        async with rpc.channel(f"127.0.0.1:{front.sockets[0].getsockname()[1]}") as channel:
            await node_pb2_grpc.NodeStub(channel).Attach(timeout=60).read()
    finally:
        front.close()
        await server.stop(None)
        await asyncio.gather(*pumps)


def test_a_server_that_waits_for_a_core_is_not_given_up():
    asyncio.run(call_one_that_answers_late(0.25))


def test_a_health_probe_needs_no_token():
    assert asyncio.run(check_health("Check")).status == health_pb2.HealthCheckResponse.SERVING


def test_watching_health_needs_a_token():
    with pytest.raises(grpc.aio.AioRpcError) as error:
        asyncio.run(check_health("Watch"))
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_loopback_needs_no_token(host):
    assert rpc.bind_address(host, 1, "").endswith(":1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_other_hosts_are_refused_without_a_token(host):
    with pytest.raises(ConfigError, match="BATON_SERVICE_TOKEN"):
        rpc.bind_address(host, 1, "")
    assert rpc.bind_address(host, 1, "t")
