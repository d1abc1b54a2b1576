"""UCX, from the side of the node; the library itself runs in `kv_transfer.ucx_child` (ADR 10)."""
