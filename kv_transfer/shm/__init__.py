"""The transport within one host: the receiver fetches blocks from the sender's memory (ADR 9)."""
