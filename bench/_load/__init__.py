"""The load generator: requests, arrivals, driver and figures, for `bench/serve.py` and the commands of `fleet/`."""
