"""Load: what is asked, when, and what came of it. `bench/serve.py` and the commands of `fleet/` put it together."""
