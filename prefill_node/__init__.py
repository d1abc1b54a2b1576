"""The prefill node: computes the KV blocks of prompts and sends them to decode nodes (`service`)."""
