"""Within a host, between GPUs or on one: the receiver fetches blocks from the sender's pool where it lies (ADR 29)."""
