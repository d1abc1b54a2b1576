"""The transport over UCX, on the node's side; UCX itself runs in the process `kv_transfer.ucx_child` (ADR 10)."""
