"""How services reach each other: gRPC, its errors, TLS; Redis, and the registry in it."""
