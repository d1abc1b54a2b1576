"""Serving a request on the nodes: dispatch, attempts, failover."""
