"""The process in which a node's UCX lives, so that UCX can die alone: `python -m kv_transfer.ucx_child`.

It is started by `kv_transfer.ucx.process`, shares with its node one region of memory (`kv_transfer.staging`), and does
what it is told by `frames`: it sends from the region, receives into the region, and keeps no state worth saving.
"""
