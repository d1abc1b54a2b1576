"""Benchmarks: each prints ratios to something known, the machine, and its command. `run.sh` runs them all."""
