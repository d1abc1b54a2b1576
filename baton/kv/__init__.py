"""What routers and nodes must agree on about KV blocks: layout, hashes, and the index of which node has which."""
