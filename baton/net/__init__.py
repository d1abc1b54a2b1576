"""Communication between services: gRPC, its errors, TLS, Redis, and the registry in Redis."""
