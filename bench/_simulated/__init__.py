"""A fleet in virtual time: simulated nodes with the time costs of real ones, under the router's real policy."""
