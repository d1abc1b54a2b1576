"""What routers and nodes must agree on about KV blocks: their layout, their hashes, the index of who holds them."""
