"""The kernels for CPUs: C++ behind a plain C interface, compiled once per instruction set and chosen when loaded.

`vector.h` and `pairs.h` hide the instruction set, one or more headers hold each op, `build.py` compiles, `library.py`
declares, and `kernels.py` is what the engine calls. What cannot be compiled is left to `kernels.reference`.
"""
