"""The decode node: runs the continuous batch, for prompts whose KV it receives or computes itself (`service`)."""
