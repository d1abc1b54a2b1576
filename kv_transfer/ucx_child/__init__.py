"""The process in which a node's UCX runs, so that a crash of UCX leaves the node alive.

`kv_transfer.ucx.process` starts it as `python -m kv_transfer.ucx_child`. It shares one region of memory with its node
(`kv_transfer.staging`), sends from it and receives into it as ordered by `frames`, and keeps no state worth saving.
"""
