"""Moving KV blocks between nodes.

`sender.KVSender` (prefill nodes) and `receiver.KVReceiver` (decode nodes) are the doors; both are given a pool
(`pools.pool_of`). Which blocks a request owns, and when they are computed, the nodes know; how bytes travel, the
transports: shm, ucx, tcp, loopback. Nothing is imported here, since the UCX process needs no more than its own modules.
"""
