"""Benchmarks. Each prints ratios to a known reference, the machine, and its own command. `run.sh` runs most of them."""
