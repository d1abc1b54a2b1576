"""The transport between KV pools on GPUs of one host: the receiver's GPU reads the sender's pool directly (ADR 29)."""
