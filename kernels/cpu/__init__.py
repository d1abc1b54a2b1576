"""The kernels for CPUs: C++ behind a plain C interface, compiled once per instruction set and chosen when loaded.

`vector.h` and `pairs.h` hide the instruction set, one or more headers implement each op, `build.py` compiles,
`library.py` declares the C functions, and `kernels.py` is what the engine calls. Where nothing can be compiled, the
engine runs `kernels.reference`.
"""
