"""The decode node: holds the continuous batch; takes KV blocks in, or computes them itself (`service`)."""
