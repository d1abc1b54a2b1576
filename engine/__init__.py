"""What both kinds of node share: checkpoints, the decoder, KV blocks, scheduling, sampling and the step loop.

It leaves the moving of KV blocks to `kv_transfer`, the maths of single operations to `kernels`, and gRPC to the nodes,
but for the one service that both kinds offer alike.
"""

import os

# How often OpenMP's workers look for work before they sleep: about a quarter of a millisecond, which covers the gaps
# within a step. libgomp's own choice is several milliseconds, and where others want the cores each barrier then
# costs a time slice. Read when torch is imported, so it has to stand here.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
