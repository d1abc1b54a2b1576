"""Moving KV blocks between nodes.

`sender.KVSender` (prefill nodes) and `receiver.KVReceiver` (decode nodes) are the doors; both are given a pool
(`pools.pool_of`). Which blocks a request owns, and when they are computed, the nodes know; how bytes travel, the
transports. Nothing is imported here, since the UCX process needs no more than its own modules.

| read in this order | for |
|---|---|
| `sender`, `outgoing`, `outbox` | a prefill node: a transfer, its turn |
| `peer`, `connector` | the way to one decode node, and how it is found |
| `receiver`, `incoming`, `service` | a decode node: grants, a transfer, connects and commits as gRPC |
| `doors`, `inbox` | its listeners, and what they ask and tell |
| `plan`, `pool`, `pools`, `digest` | what both compute: messages, where blocks lie, what arrived |
| `staged_pool`, `device_blocks` | pools on a GPU |
| `transport`, `choose` | what a transport is, and which there are |
| `loopback`, `tcp`, `shm`, `cuda`, `ucx` | those; `ucx_child` is the process in which UCX lives, `staging` its memory |
| `socket_connection`, `acceptor`, `stall` | parts of several of them |
| `metrics`, `faults`, `probe` | counting, breaking on purpose in tests, `baton doctor` |
"""
