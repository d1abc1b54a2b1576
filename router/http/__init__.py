"""The HTTP side of the router: connections, API keys, rate limits, reading and sending, errors, metrics."""
