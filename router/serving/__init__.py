"""The life of a request on the nodes: attempts, failover, the legs of both pools."""
