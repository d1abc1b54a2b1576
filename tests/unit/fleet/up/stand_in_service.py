"""A stand-in for a service process: it speaks the supervisor's protocol, and does nothing else.

What it is to do comes as BATON_FAULT_… variables, the ones that a supervisor passes on:
BATON_FAULT_FAIL=<node id> (its start fails), BATON_FAULT_SLOW=<node id> (it loads for three seconds),
BATON_FAULT_DEAF=1 (it heeds no SIGTERM).
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time

ROLE = sys.argv[1]
FLAGS = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))


def main() -> int:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    name = FLAGS.get("--node-id", "router")
    if os.environ.get("BATON_FAULT_FAIL") == name:
        print(f"baton {ROLE}: the checkpoint is broken", file=sys.stderr)
        return 1
    print("up", name, "cores", sorted(os.sched_getaffinity(0)), *sys.argv[2:], file=sys.stderr, flush=True)
    return asyncio.run(serve(name))


async def serve(name: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    heed = (lambda: None) if os.environ.get("BATON_FAULT_DEAF") else stop.set
    loop.add_signal_handler(signal.SIGTERM, heed)
    port = int(FLAGS["--port"]) if ROLE == "router" else 0
    server = await asyncio.start_server(answer, "127.0.0.1", port, reuse_port=ROLE == "router")
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print("progress 0.5\nsomething else", flush=True)
    if os.environ.get("BATON_FAULT_SLOW") == name:
        await asyncio.sleep(3)
    print("progress 1.0", flush=True)
    facts = {
        "node_id": name,
        "epoch": time.time_ns(),
        "address": address,
        "metrics_url": f"http://{address}/metrics",
    }
    print("ready", json.dumps(facts), flush=True)
    await stop.wait()
    return 0


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
