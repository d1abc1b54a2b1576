"""Benchmarks: each prints ratios to something the reader knows, the machine, and its command. `run.sh` runs them all."""
