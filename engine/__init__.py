"""What both kinds of node share: checkpoints, the decoder, KV blocks, scheduling, sampling and the step loop.

`kv_transfer` moves KV blocks, `kernels` compute single operations, and the nodes implement gRPC, except for the one
service that both kinds offer (`engine.prompt_service`).
"""

import os

# How often OpenMP's workers look for work before they sleep: about a quarter of a millisecond, which covers the gaps
# within a step. libgomp's default is several milliseconds, with which each barrier costs a time slice if other
# processes want the cores. Read when torch is imported, so it must be set here.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
