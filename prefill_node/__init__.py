"""The prefill node: builds the KV blocks of prompts and ships them (`service`)."""
