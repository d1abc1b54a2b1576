"""Moving KV blocks between nodes.

The entry points are `sender.KVSender` on prefill nodes and `receiver.KVReceiver` on decode nodes. Each works on a KV
pool (`pools.pool_of`). The nodes decide which blocks belong to a request and when they are computed; the transports
decide how the bytes travel. This file imports nothing, so that the UCX process loads only the modules it needs.

| read in this order | for |
|---|---|
| `sender`, `outgoing`, `outbox` | the prefill node: one transfer, and the queue of messages to one peer |
| `peer`, `connector` | the connections to one decode node, and how their transport is chosen |
| `receiver`, `incoming`, `service` | the decode node: grants, one transfer, the gRPC calls Connect and Commit |
| `listeners`, `inbox` | the decode node's listeners, and the calls they make to the receiver |
| `plan`, `pool`, `pools`, `digest` | what both sides share: the messages of a transfer, block locations, checksums |
| `staged_pool`, `device_blocks` | pools on a GPU |
| `transport`, `choose` | the transport interface, and the choice of transports |
| `tcp`, `shm`, `cuda`, `ucx` | the transports |
| `ucx_child`, `staging` | the process in which UCX runs, and the memory that it shares with the node |
| `socket_connection`, `acceptor`, `stall` | parts that several transports share |
| `metrics`, `faults`, `probe` | metrics, fault injection for tests, checks for `baton doctor` |
"""
