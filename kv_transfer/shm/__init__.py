"""Within a host: the receiver fetches blocks from the memory of the sender (ADR 9)."""
