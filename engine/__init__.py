"""What both kinds of node share: checkpoints, the decoder, KV blocks, scheduling, sampling and the step loop.

It leaves the moving of KV blocks to `kv_transfer`, the maths of single operations to `kernels`, and gRPC to the nodes.
"""
