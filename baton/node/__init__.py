"""What prefill and decode nodes have in common: the process shell, the gRPC service, sessions with routers, load."""
